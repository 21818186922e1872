"""The scene teacher as a model behind a server: it writes from the boxes of rendered scenes, and at times it errs.

What goes wrong goes wrong with real teachers too, and each slip falls to another check.
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
from spatial_vlm.synthesis.draft import CHAIN, GEMINI, QWEN, Draft, Form
from spatial_vlm.synthesis.local.faults import fraction

HINTED_SHARE = 0.2
"""How often a teacher that was told the label slips, beside one that was not."""


class SceneAnswers:
  """Answers questions on the pictures in a folder that `spatial-vlm scenes` wrote; safe for threads.

  Equal questions get equal answers. Raises UsageError for a folder without scenes.
  """

  def __init__(self, folder: epath.PathLike, split: str, mistake_share: float):
    """`mistake_share` is the share of blind questions with one slip in the answer."""
    if not 0 <= mistake_share <= 1:
      raise UsageError(f"mistake_share is {mistake_share}; it is a share, from 0 to 1")
    self.mistake_share = mistake_share
    folder = epath.Path(folder)
    records, boxes = folder / f"{split}.jsonl", folder / f"{split}.boxes.jsonl"
    if missing := [str(path) for path in (records, boxes) if not path.exists()]:
      raise UsageError(f"{' and '.join(missing)} are missing; make them with `spatial-vlm scenes`")
    source = JsonlSource(records, folder / "images", boxes)
    self._known: dict[bytes, list[tuple[Record, Mapping[str, Box]]]] = {}
    for index in range(len(source)):
      record, named = source.describe(index)
      key = _digest(source.image_files.read(record.image))
      self._known.setdefault(key, []).append((record, named))

  def __call__(self, image: bytes, system: str, text: str, seed: int) -> str:
    """What the teacher writes; raises ValueError for a picture or a question that it does not know."""
    record, boxes, form, hinted = self._recognize(image, system, text)
    draft = scene_teacher.draft(record, boxes)
    share = self.mistake_share * (HINTED_SHARE if hinted else 1)
    identity = (image.hex(), text, seed)
    if fraction("slips", *identity) >= share:
      return form.write(draft)
    slips = (_betray,) if hinted else _SLIPS
    slip = slips[int(fraction("which", *identity) * len(slips))]
    return form.write(slip(draft, record))

  def _recognize(
    self, image: bytes, system: str, text: str
  ) -> tuple[Record, Mapping[str, Box], Form, bool]:
    for record, boxes in self._known.get(_digest(image), ()):
      for form in (GEMINI, QWEN, CHAIN):
        hints = (None,) if form is CHAIN else (None, record.label)
        for hint in hints:
          question = form.question(record, image, "", seed=0, hint=hint)
          if (question.system, question.text) == (system, text):
            return record, boxes, form, hint is not None
    raise ValueError(f"no scene with this picture is asked about by {text[:200]!r}")


def _digest(image: bytes) -> bytes:
  return hashlib.sha256(image).digest()


def _swap_boxes(draft: Draft, record: Record) -> Draft:
  """Gives the two objects each other's place: what small models learn last."""
  other = {record.subj: record.obj, record.obj: record.subj}
  boxes = dict(draft.objects)
  swapped = tuple((name, boxes[other.get(name) or name]) for name in boxes)
  return dataclasses.replace(draft, objects=swapped)


def _swap_axes(draft: Draft, record: Record) -> Draft:
  """Writes the numbers of boxes in another order than was asked for."""
  swapped = tuple((name, (y1, x1, y2, x2)) for name, (x1, y1, x2, y2) in draft.objects)
  return dataclasses.replace(draft, objects=swapped)


def _conclude_otherwise(draft: Draft, record: Record) -> Draft:
  return dataclasses.replace(draft, verdict=1 - draft.verdict)


def _misread(draft: Draft, record: Record) -> Draft:
  """Gets the first number of the Reasoning wrong."""
  reasoning = re.sub(r"\d+", lambda number: str(int(number[0]) + 50), draft.reasoning, count=1)
  return dataclasses.replace(draft, reasoning=reasoning)


def _judge_early(draft: Draft, record: Record) -> Draft:
  word = "true" if draft.verdict else "false"
  return dataclasses.replace(draft, summary=f"The statement is {word}: {record.caption}")


def _betray(draft: Draft, record: Record) -> Draft:
  said = f"{draft.reasoning} This agrees with the given answer."
  return dataclasses.replace(draft, reasoning=said)


_SLIPS: tuple[Callable[[Draft, Record], Draft], ...] = (
  _swap_boxes,
  _swap_axes,
  _conclude_otherwise,
  _misread,
  _judge_early,
)
"""Of a teacher that was not told the label."""
