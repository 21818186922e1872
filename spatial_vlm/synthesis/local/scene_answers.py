"""The scene teacher as the model of a local server: writes exact chains of rendered scenes, some with a mistake.

Real teachers make the same mistakes, and a different check finds each of them.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping

from etils import epath

from spatial_vlm.answers import Box
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import JsonlSource, Record
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.formats import CHAIN, GEMINI, QWEN, ResponseFormat
from spatial_vlm.synthesis.hashing import hash_fraction

HINTED_SHARE = 0.2
"""Share of mistakes in hinted answers, relative to blind answers."""


class SceneAnswers:
  """Answers questions about the images in a folder of `spatial-vlm scenes`; thread-safe.

  Equal questions get equal answers. Raises UsageError for a folder without scenes.
  """

  def __init__(self, folder: epath.PathLike, split: str, mistake_share: float):
    """Reads the scenes; `mistake_share` is the share of blind answers with one mistake."""
    if not 0 <= mistake_share <= 1:
      raise UsageError(f"mistake_share is {mistake_share}; give a share from 0 to 1")
    self.mistake_share = mistake_share
    folder = epath.Path(folder)
    records, boxes = folder / f"{split}.jsonl", folder / f"{split}.boxes.jsonl"
    if missing := [str(path) for path in (records, boxes) if not path.exists()]:
      raise UsageError(
        f"{' and '.join(missing)} are missing; create them with `spatial-vlm scenes`"
      )
    source = JsonlSource(records, folder / "images", boxes)
    self._known: dict[bytes, list[tuple[Record, Mapping[str, Box]]]] = {}
    for index in range(len(source)):
      record, named = source.describe(index)
      key = _digest(source.image_files.read(record.image))
      self._known.setdefault(key, []).append((record, named))

  def __call__(self, image: bytes, system: str, text: str, seed: int) -> str:
    """Returns the answer; raises ValueError for an unknown image or question."""
    record, boxes, response_format, hinted = self._recognize(image, system, text)
    draft = scene_teacher.draft(record, boxes)
    share = self.mistake_share * (HINTED_SHARE if hinted else 1)
    identity = (image.hex(), text, seed)
    if hash_fraction("slips", *identity) >= share:
      return response_format.render(draft)
    mistakes = (_betray_hint,) if hinted else _MISTAKES
    mistake = mistakes[int(hash_fraction("which", *identity) * len(mistakes))]
    return response_format.render(mistake(draft, record))

  def _recognize(
    self, image: bytes, system: str, text: str
  ) -> tuple[Record, Mapping[str, Box], ResponseFormat, bool]:
    """Returns record, boxes, response format and whether the question is hinted."""
    for record, boxes in self._known.get(_digest(image), ()):
      for response_format in (GEMINI, QWEN, CHAIN):
        hints = (None,) if response_format is CHAIN else (None, record.label)
        for hint in hints:
          question = response_format.question(record, image, "", seed=0, hint=hint)
          # Limits of the checks may follow the instruction.
          is_asked = system == question.system or system.startswith(f"{question.system}\n\n")
          if question.text == text and is_asked:
            return record, boxes, response_format, hint is not None
    raise ValueError(f"no scene has this image and the question {text[:200]!r}")


def _digest(image: bytes) -> bytes:
  return hashlib.sha256(image).digest()


def _swap_boxes(draft: Draft, record: Record) -> Draft:
  """Exchanges the boxes of the two objects."""
  other = {record.subj: record.obj, record.obj: record.subj}
  boxes = dict(draft.objects)
  swapped = tuple((name, boxes[other.get(name) or name]) for name in boxes)
  return dataclasses.replace(draft, objects=swapped)


def _swap_axes(draft: Draft, record: Record) -> Draft:
  """Writes the numbers of boxes in the wrong order."""
  swapped = tuple((name, (y1, x1, y2, x2)) for name, (x1, y1, x2, y2) in draft.objects)
  return dataclasses.replace(draft, objects=swapped)


def _flip_verdict(draft: Draft, record: Record) -> Draft:
  """Concludes the opposite."""
  return dataclasses.replace(draft, verdict=1 - draft.verdict)


def _change_number(draft: Draft, record: Record) -> Draft:
  """Changes the first number of the Reasoning."""
  reasoning = re.sub(r"\d+", lambda number: str(int(number[0]) + 50), draft.reasoning, count=1)
  return dataclasses.replace(draft, reasoning=reasoning)


def _judge_in_summary(draft: Draft, record: Record) -> Draft:
  """States the verdict in the Summary."""
  word = "true" if draft.verdict else "false"
  return dataclasses.replace(draft, summary=f"The statement is {word}: {record.caption}")


def _betray_hint(draft: Draft, record: Record) -> Draft:
  """Mentions the label in the Reasoning."""
  reasoning = f"{draft.reasoning} This agrees with the given answer."
  return dataclasses.replace(draft, reasoning=reasoning)


_MISTAKES: tuple[Callable[[Draft, Record], Draft], ...] = (
  _swap_boxes,
  _swap_axes,
  _flip_verdict,
  _change_number,
  _judge_in_summary,
)
"""Mistakes in blind answers."""
