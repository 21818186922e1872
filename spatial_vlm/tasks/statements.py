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
  "short": "Reasoning, Conclusion.",
}


def question(caption: str, form: str) -> str:
  """Returns the question whether `caption` holds, to be answered in `form` (see `answers`).

  >>> question("The cat is left of the mug.", "direct")
  'The cat is left of the mug. True? Answer Yes or No.'
  """
  if form not in _INSTRUCTIONS:
    raise ValueError(f"form is {form!r}; allowed are {sorted(_INSTRUCTIONS)}")
  return f"{caption} True? {_INSTRUCTIONS[form]}"


def behavior_prompt(line: str) -> str:
  """Returns the system turn that tells a policy to use the behavior of this line.

  >>> behavior_prompt("behavior_left_of: Compare the centres.")
  'Use behavior_left_of: Compare the centres.'
  """
  return f"Use {line}"


TASK = Task(
  read=JsonlSource,
  question=question,
  behavior_prompt=behavior_prompt,
  grammar=STATEMENT,
  first_words={1: "Yes", 0: "No"},
  score=functools.partial(score_statements, meta_category=META_CATEGORY),
)
"""True-or-false statements in VSR's record format."""
