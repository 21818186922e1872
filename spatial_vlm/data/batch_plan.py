"""Which records stand in which row of which batch, planned from their sizes before any picture is decoded.

  shuffled   one conversation a row, in the order given
  bucketed   likewise, each batch of conversations that are padded to the same shape
  packed     as many conversations a row as fit

A plan is a pure function of the order and the sizes: the number of steps is known before the first, every batch can
be read by its number, and all processes agree on all shapes. (grain's packing knows sizes only once a record is read
and decoded, so neither its steps could be counted nor its batches be read from the middle.)

Every record of the order is in the plan exactly as often as it is in the order. Where the last batch is not full it
has empty rows; they are padding altogether.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from spatial_vlm.processor.chat import Size, total_size

OPEN_ROWS = 64
"""Rows that are filled at the same time: with more, less is padded, and records stray further from their order."""


class PlannedBatch(NamedTuple):
  shape: Size
  """Of each row, padding included."""
  rows: tuple[tuple[int, ...], ...]
  """Numbers of the records in each row."""


Sizes = Mapping[int, Size] | Sequence[Size]
"""By number of the record."""
Arrange = Callable[[Sequence[int], Sizes, Sequence[Size], int], list[PlannedBatch]]
"""(order of the records, their sizes, shapes to choose from, rows of a batch) -> batches"""


def largest(shapes: Sequence[Size]) -> Size:
  """The shape that holds all others.

  Raises ValueError when none does.
  """
  for shape in shapes:
    if all(shape.holds(other) for other in shapes):
      return shape
  raise ValueError(
    f"of the shapes {tuple(map(tuple, shapes))} none holds all others; one has to have the most tokens and the most"
    " patches"
  )


def smallest(shapes: Sequence[Size], sizes: Iterable[Size]) -> Size:
  """The shape of fewest slots whose rows hold any of these sizes; `largest` holds them all."""
  tokens, patches = map(max, zip(*sizes, strict=True))
  return min((s for s in shapes if s.holds(Size(tokens, patches))), key=sum)


def shuffled(
  order: Sequence[int], sizes: Sizes, shapes: Sequence[Size], batch_size: int
) -> list[PlannedBatch]:
  """One record a row, in order; each batch in the smallest shape that holds it."""
  return [
    _single(order[start : start + batch_size], sizes, shapes, batch_size)
    for start in range(0, len(order), batch_size)
  ]


def bucketed(
  order: Sequence[int], sizes: Sizes, shapes: Sequence[Size], batch_size: int
) -> list[PlannedBatch]:
  """One record a row, batches of one shape: each record waits for enough others of its own.

  Those that wait in vain are batched with the next smaller ones, at the end.
  """
  waiting: dict[Size, list[int]] = {shape: [] for shape in shapes}
  plan = []
  for number in order:
    bucket = waiting[smallest(shapes, [sizes[number]])]
    bucket.append(number)
    if len(bucket) == batch_size:
      plan.append(_single(bucket, sizes, shapes, batch_size))
      bucket.clear()
  left = [number for shape in sorted(waiting, key=sum, reverse=True) for number in waiting[shape]]
  return plan + shuffled(left, sizes, shapes, batch_size)


def packed(
  order: Sequence[int], sizes: Sizes, shapes: Sequence[Size], batch_size: int
) -> list[PlannedBatch]:
  """As many records a row of the largest shape as fit: each goes to the fullest of the open rows that still holds it.

  When there is none a row is opened; beyond `OPEN_ROWS`, the fullest is closed for it.
  """
  shape = largest(shapes)
  opened: list[_Row] = []
  closed: list[_Row] = []
  for number in order:
    size = sizes[number]
    # min takes the first of equals, the oldest: no order but that of the records decides
    row = min((r for r in opened if r.left.holds(size)), key=_Row.slack, default=None)
    if row is None:
      row = _Row([], shape, shape)
      opened.append(row)
    row.add(number, size)
    if len(opened) > OPEN_ROWS:
      closed.append(opened.pop(opened.index(min(opened, key=_Row.slack))))
  rows = [tuple(row.numbers) for row in closed + opened]
  return [
    _filled(shape, rows[start : start + batch_size], batch_size)
    for start in range(0, len(rows), batch_size)
  ]


BATCHINGS: dict[str, Arrange] = {"shuffled": shuffled, "bucketed": bucketed, "packed": packed}


def padding(plan: Iterable[PlannedBatch], sizes: Sizes) -> dict[str, tuple[int, int]]:
  """Returns (padded slots, all slots) by kind of slot: token and patch."""
  padded, slots = Size(0, 0), Size(0, 0)
  for shape, rows in plan:
    there = Size(len(rows) * shape.tokens, len(rows) * shape.patches)
    used = total_size(sizes[number] for row in rows for number in row)
    slots = total_size([slots, there])
    padded = total_size([padded, Size(there.tokens - used.tokens, there.patches - used.patches)])
  return {
    "token": (padded.tokens, slots.tokens),
    "patch": (padded.patches, slots.patches),
  }


class _Row:
  """A row being filled."""

  def __init__(self, numbers: list[int], left: Size, shape: Size):
    self.numbers, self.left, self.shape = numbers, left, shape

  def add(self, number: int, size: Size) -> None:
    self.numbers.append(number)
    self.left = Size(self.left.tokens - size.tokens, self.left.patches - size.patches)

  def slack(self) -> float:
    """Free share of the tokens plus that of the patches."""
    return self.left.tokens / self.shape.tokens + self.left.patches / max(self.shape.patches, 1)


def _single(
  numbers: Sequence[int], sizes: Sizes, shapes: Sequence[Size], batch_size: int
) -> PlannedBatch:
  shape = smallest(shapes, [sizes[number] for number in numbers])
  return _filled(shape, [(number,) for number in numbers], batch_size)


def _filled(shape: Size, rows: Sequence[tuple[int, ...]], batch_size: int) -> PlannedBatch:
  return PlannedBatch(shape, (*rows, *[()] * (batch_size - len(rows))))
