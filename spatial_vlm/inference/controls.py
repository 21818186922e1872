"""Controls: the same questions without their image, so that a model that is right without seeing is found out.

A control replaces the images of every example. Captions, labels and the numbers of records stay, so that answers with
and without the image are paired. Labels are those of the original image: under every control, a model that uses what it
sees should fall to the accuracy of guessing.
"""

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8

from spatial_vlm.answer_extraction import conclusions
from spatial_vlm.answers import Box, Grammar
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import BadRecord, Example, ExampleSource, Record
from spatial_vlm.evaluation.predictions import CANNOT_TELL
from spatial_vlm.tasks.task import Question, Task

Shown = list[UInt8[np.ndarray, "_ _ 3"]]
"""The images that are shown; []: the prompt has none."""
WHITE, GREY = 255, 128
_CANNOT_TELL = re.compile(r"\bcan(?:not|['’]t| not) tell\b", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Control:
  """What is shown in place of an example's images."""

  images: Callable[[Example, Callable[[], Example]], Shown]
  """(example, function that reads the example whose images may be shown instead) → images."""
  offers_cannot_tell: bool = False
  """Whether the question offers the option "Cannot tell."."""


def blank(example: Example, other: Callable[[], Example]) -> Shown:
  """Returns white images of the example's sizes."""
  return [np.full_like(image, WHITE) for image in example.images]


def grey(example: Example, other: Callable[[], Example]) -> Shown:
  """Returns grey images of the example's sizes."""
  return [np.full_like(image, GREY) for image in example.images]


def other_image(example: Example, other: Callable[[], Example]) -> Shown:
  """Returns the images of another record (see `other_records`)."""
  return other().images


def text_only(example: Example, other: Callable[[], Example]) -> Shown:
  """Returns nothing: the prompt holds the question alone."""
  return []


CONTROLS: Mapping[str, Control] = MappingProxyType(
  {
    "blank": Control(blank),
    "cannot_tell": Control(grey, offers_cannot_tell=True),
    "other_image": Control(other_image),
    "text_only": Control(text_only),
  }
)
"""Name → control; a further one is one more entry."""


def find_control(name: str) -> Control:
  """Returns the control of this name; raises UsageError, with the known names, for any other."""
  if name not in CONTROLS:
    raise UsageError(f"control is {name!r}; choose one of {', '.join(CONTROLS)}, or '' for none")
  return CONTROLS[name]


class ControlledSource:
  """A source of the same examples under a control, without true boxes: those belong to the image that is not shown."""

  def __init__(self, source: ExampleSource, control: Control):
    self.source, self.control = source, control
    self._other: Sequence[int] = ()
    if control.images is other_image:
      records = [source.describe(number)[0] for number in range(len(source))]
      names = [source.image_name(number) for number in range(len(source))]
      self._other = other_records(records, names)

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Example:
    example = self.source[index]
    shown = self.control.images(example, lambda: self.source[self._other[index]])
    first = shown[0] if shown else None
    return dataclasses.replace(example, image=first, more_images=tuple(shown[1:]), boxes={})

  def describe(self, index: int) -> tuple[Record, dict[str, Box]]:
    """Returns the record; no boxes."""
    return self.source.describe(index)[0], {}

  def origin(self, index: int) -> tuple[str, int]:
    """Returns file and line of the record, for reports."""
    return self.source.origin(index)

  def image_name(self, index: int) -> str:
    """Returns the name of the record's own image."""
    return self.source.image_name(index)

  @property
  def bad(self) -> list[BadRecord]:
    """Rows that could not be read as records."""
    return self.source.bad

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Image and caption of each record."""
    return self.source.pairs


def other_records(records: Sequence[Record], images: Sequence[str]) -> list[int]:
  """Returns for each record the number of another one, whose image is shown in its place.

  Every record is chosen once, and none for a record with the same image. As few as possible are chosen for a record
  with the same label: in the order of labels, then of digests of the records, each gets the one that stands as many
  places later as the most frequent label has records. The result depends on the records only.

  Raises UsageError if more than half of the records have one image, so that there is no such choice.
  """
  n, labels = len(records), [record.label for record in records]
  name, most = Counter(images).most_common(1)[0]
  if 2 * most > n:
    raise UsageError(
      f"control is 'other_image' and {most} of {n} records have the image {name!r}; more than half cannot be swapped: "
      "give records of more images"
    )

  def place(number: int) -> tuple[int, str, int]:
    text = f"{images[number]}\0{records[number].caption}"
    return labels[number], hashlib.sha256(text.encode()).hexdigest(), number

  order = sorted(range(n), key=place)
  shift = max(Counter(labels).values()) % n or 1
  chosen = [0] * n
  for at, number in enumerate(order):
    chosen[number] = order[(at + shift) % n]
  for number in order:
    if images[chosen[number]] == images[number]:
      _swap(number, chosen, order, images, labels)
  return chosen


def _swap(
  number: int,
  chosen: list[int],
  order: Sequence[int],
  images: Sequence[str],
  labels: Sequence[int],
) -> None:
  """Exchanges what `number` got, a record with its own image, with what another record got.

  At most half of the records have this image, and at most half got it, `number` both: some record is free to swap.
  """
  own = images[number]
  free = [i for i in order if images[i] != own and images[chosen[i]] != own]

  def same_labels(i: int) -> int:
    return (labels[chosen[i]] == labels[number]) + (labels[chosen[number]] == labels[i])

  partner = min(free, key=same_labels)
  chosen[number], chosen[partner] = chosen[partner], chosen[number]


def with_cannot_tell(task: Task) -> Task:
  """Returns the task whose questions offer "Cannot tell." and whose grammar accepts it, in every form.

  In any wording, "can't tell" and "cannot tell" state it too. The first word of a direct answer is chosen among the
  same words as before.
  """

  def question(caption: str, form: str) -> str:
    return f"{task.question(caption, form)} If the image does not show it, answer Cannot tell."

  def extract(text: str, record: Question) -> int:
    for stated in conclusions(text):
      if _CANNOT_TELL.search(stated):
        return CANNOT_TELL
      if task.extract(stated, record) >= 0:
        break
    return task.extract(text, record)

  def strict(grammar: Grammar, text: str, record: Question) -> int:
    parsed = grammar.parse(text)
    declines = parsed is not None and parsed.verdict == CANNOT_TELL
    return CANNOT_TELL if declines else task.strict(task.grammar, text, record)

  # It comes first, since an answer in any words matches it too.
  verdicts = {CANNOT_TELL: r"Cannot tell\.", **task.grammar.verdicts}
  grammar = dataclasses.replace(task.grammar, verdicts=verdicts)
  return dataclasses.replace(
    task, question=question, grammar=grammar, extract=extract, strict=strict
  )
