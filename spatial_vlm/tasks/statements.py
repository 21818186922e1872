"""The task of statements: whether a caption is true of an image."""

import functools

from spatial_vlm.answers import STATEMENT
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.evaluation.scores import score_statements
from spatial_vlm.tasks.task import Task

LIST_OBJECTS = "List the objects."

_INSTRUCTIONS = {
  "direct": "Answer Yes or No.",
  "chain": "Think in four steps: Summary, Caption, Reasoning, Conclusion.",
}


def question(caption: str, form: str, behavior: str | None = None) -> str:
  """Returns the question whether `caption` holds, to be answered in `form` (see `answers`).

  `behavior` is the line "behavior_…: instruction" that a short answer recalls; other forms take none.

  >>> question("The cat is left of the mug.", "direct")
  'The cat is left of the mug. True? Answer Yes or No.'
  >>> question("The cat is left of the mug.", "short", "behavior_left_of: Compare the centres.")
  'The cat is left of the mug. True? Use behavior_left_of: Compare the centres.'
  """
  if form == "short":
    if not behavior:
      raise ValueError("a short question needs the behavior to use, as 'behavior_…: instruction'")
    return f"{caption} True? Use {behavior}"
  if form not in _INSTRUCTIONS:
    raise ValueError(f"form is {form!r}; allowed are {sorted([*_INSTRUCTIONS, 'short'])}")
  if behavior is not None:
    raise ValueError(f"form {form!r} takes no behavior; ask in form 'short' to use one")
  return f"{caption} True? {_INSTRUCTIONS[form]}"


TASK = Task(
  read=JsonlSource,
  question=question,
  grammar=STATEMENT,
  first_words={1: "Yes", 0: "No"},
  score=functools.partial(score_statements, meta_category=META_CATEGORY),
)
"""True-or-false statements in VSR's record format."""
