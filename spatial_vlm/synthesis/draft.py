"""A chain before verification, and its text as a policy learns it."""

import dataclasses

from spatial_vlm import answers
from spatial_vlm.answers import Box


@dataclasses.dataclass(frozen=True)
class Draft:
  """The four steps as a teacher wrote them, not yet verified."""

  summary: str
  caption: str
  """Describes the scene in words; may be empty, because the Caption also lists the objects."""
  objects: tuple[tuple[str, Box], ...]
  """Names and boxes as written: names may repeat, boxes may be empty or outside the image."""
  reasoning: str
  verdict: int
  """1 for yes, 0 for no."""


def chain(draft: Draft) -> str:
  """Returns the draft as the project's chain text; its Caption ends in the named boxes.

  Raises ValueError if a step has no words.

  >>> cat, mug = ("cat", (0, 20, 400, 600)), ("mug", (500, 0, 900, 80))
  >>> chain(Draft("a", "A cat", (cat, mug), "b", 1)).splitlines()[1]
  'Caption: A cat. cat [0, 20, 400, 600], mug [500, 0, 900, 80]'
  """
  words = draft.caption.strip()
  if words and words[-1] not in ".!?":
    words += "."  # Without it, the last words would be parsed as part of the first box's name.
  caption = f"{words} {answers.render_boxes(draft.objects)}"
  return answers.render_chain(draft.summary, caption, draft.reasoning, draft.verdict)
