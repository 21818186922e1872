"""Messages in the chat format of transformers: turns with an image or a video."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from spatial_vlm.processor.video import Video, VideoInfo

Messages = list[dict[str, Any]]
"""Turns in Hugging Face's format: {"role": …, "content": [{"type": "image" | "video" | "text", …}]}."""
Visual = Image.Image | np.ndarray | Video | tuple | None
"""An image or a video, or the `ImageSize` or `VideoInfo` that replaces it when only its size is needed; None: none."""


def messages(
  visual: Visual | list, text: str, answer: str | None = None, system: str = ""
) -> Messages:
  """Returns one question about an image or video or a list of them, after a system turn, with its answer if given."""
  turns = [] if answer is None else [answer]
  before: Messages = [{"role": "system", "content": [{"type": "text", "text": system}]}]
  return [*(before if system else []), *conversation(visual, [(text, *turns)])]


def conversation(visual: Visual | list, turns: Sequence[tuple[str, ...]]) -> Messages:
  """Returns several (question, answer) turns about an image or video, a list of them or none; they come first."""
  visuals = visual if isinstance(visual, list) else [] if visual is None else [visual]
  result: Messages = []
  for text, *answer in turns:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if not result:
      content[:0] = map(_part, visuals)
    result.append({"role": "user", "content": content})
    result += [{"role": "assistant", "content": [{"type": "text", "text": a}]} for a in answer]
  return result


def _part(visual: Visual) -> dict[str, Any]:
  kind = "video" if isinstance(visual, Video | VideoInfo) else "image"
  return {"type": kind, kind: visual}
