"""Questions as the model reads them, and the messages that carry them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatial_vlm.processor.video import Outline, Video

Messages = list[dict[str, Any]]
"""Turns in Hugging Face's form: {"role": …, "content": [{"type": "image" | "video" | "text", …}]}."""
Visual = Image.Image | np.ndarray | Video | tuple
"""An image or a video, or the `Extent` or `Outline` that stands for one where only its size matters."""

LIST_OBJECTS = "List the objects."

_INSTRUCTIONS = {
  "direct": "Answer Yes or No.",
  "chain": "Think in four steps: Summary, Caption, Reasoning, Conclusion.",
}


def question(caption: str, form: str, behavior: str | None = None) -> str:
  """Asks whether `caption` holds, to be answered in `form` (see `answers`).

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


def messages(visual: Visual, text: str, answer: str | None = None) -> Messages:
  """One question on one image or video, with its answer where it is known."""
  turns = [] if answer is None else [answer]
  return conversation(visual, [(text, *turns)])


def conversation(visual: Visual, turns: Sequence[tuple[str, ...]]) -> Messages:
  """Several (question, answer) turns on one image or video, which stands before the first question."""
  kind = "video" if isinstance(visual, Video | Outline) else "image"
  result: Messages = []
  for text, *answer in turns:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if not result:
      content.insert(0, {"type": kind, kind: visual})
    result.append({"role": "user", "content": content})
    result += [{"role": "assistant", "content": [{"type": "text", "text": a}]} for a in answer]
  return result
