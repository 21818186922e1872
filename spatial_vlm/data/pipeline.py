"""Input pipeline: record numbers in, batches of NumPy arrays out (grain).

  cursor 0, 1, 2, …  →  this process's rows  →  number of the record (a new permutation every epoch)
                     →  encode  →  skip bad records  →  collate  →  prefetch

`batches` reads an endless or repeated order of single records. `planned_batches` reads a plan (see `batch_plan`) whose
rows may hold several records. `ordered_batches` reads every record once, for evaluation.

The global order of the rows is a pure function of (seed, cursor), or of the plan. It does not depend on the number of
processes, threads or restarts. The iterators are grain's: `get_state()` is JSON-able and exact for the batch received
last, however many batches are prefetched after it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import grain
import numpy as np
from grain import experimental as grain_experimental
from jaxtyping import Int

from spatial_vlm.data.batch_plan import PlannedBatch
from spatial_vlm.data.reading import BadRecordTally, ReadOptions, RecordRow, Source, read_row
from spatial_vlm.data.records import BadRecord, TooManyBadRecords
from spatial_vlm.data.skipped_records import SkipBadRecords
from spatial_vlm.processor.chat import Size


class EpochOrder(NamedTuple):
  """The order in which `batches` reads a source."""

  batch_size: int
  """Rows of a batch over all processes."""
  seed: int
  """Of the permutations, in [0, 2³²)."""
  epochs: int | None = None
  """Passes over the source, rounded down to whole batches; None is endless."""
  shuffle: bool = True
  """A new permutation every epoch, else the order of the source."""

  def numbers(self, records: int) -> Callable[[int], int]:
    """Returns the map from a cursor to the number of a record."""
    return prompt_order(self.seed, records) if self.shuffle else lambda cursor: cursor % records

  def num_batches(self, records: int) -> int:
    """Returns the number of whole batches; ValueError if there is none."""
    if self.epochs is None:
      return sys.maxsize
    count = records * self.epochs // self.batch_size
    if count < 1:
      raise ValueError(
        f"{records} records × {self.epochs} epochs do not fill one batch of {self.batch_size}; "
        "lower batch_size, or give more records or epochs."
      )
    return count


class _PlannedRow(NamedTuple):
  """A row of a plan after reading: its good records."""

  shape: Any
  records: list[RecordRow]


def prompt_order(seed: int, count: int) -> Callable[[int], int]:
  """Returns an endless shuffled order of `count` records: cursor c ≥ 0 → number of the record.

  Each epoch (`count` cursors) is a permutation of its own; a pure function of (seed, cursor).
  """
  if count < 1:
    raise ValueError("the source holds no records; check the path and the split it was read from.")
  permuted = grain.MapDataset.range(count).seed(seed).shuffle()

  def number_at(cursor: int) -> int:
    number = permuted[int(cursor)]
    assert number is not None  # grain filters no number
    return int(number)

  return number_at


def batches(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[[list[Any]], Any],
  order: EpochOrder,
  options: ReadOptions = ReadOptions(),  # noqa: B008 (an immutable default)
) -> grain.DatasetIterator:
  """Returns an iterator over training batches of single records.

  Given a state of the same arguments, it resumes exactly there. The next record takes the place of a bad one, so that
  every process yields the same number of batches.

  Args:
    source: records, read by number.
    encode: record -> row. A record for which it or the source raises BadRecordError, UnreadableImage or
      UnusableRecord is skipped.
    collate: list of rows -> batch of NumPy arrays.
    order: batch size, seed and epochs.
    options: threads, prefetched batches, tolerated bad records and this process.
  """
  own = options.shard.rows(order.batch_size)
  numbers, count = order.numbers(len(source)), order.num_batches(len(source))

  def row(local: int) -> RecordRow:
    batch, offset = divmod(local, len(own))
    cursor = batch * order.batch_size + own[offset]
    return read_row(source, encode, numbers(cursor))

  stream = grain.MapDataset.range(sys.maxsize).map(row).to_iter_dataset(options.for_grain(len(own)))
  tally = BadRecordTally(len(source), options.max_bad_share)
  stream = SkipBadRecords(stream, _keep_good, tally, options.shard)
  stream = stream.batch(len(own), batch_fn=lambda kept: collate([row.value for row in kept]))
  return _prefetched(grain_experimental.LimitIterDataset(stream, count), options)


def planned_batches(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[..., Any],
  plan: Sequence[PlannedBatch],
  options: ReadOptions = ReadOptions(),  # noqa: B008 (an immutable default)
  known_bad: Mapping[int, BadRecord] = MappingProxyType({}),
) -> grain.DatasetIterator:
  """Returns an iterator over the batches of a plan.

  Given a state of the same arguments, it resumes exactly there. A bad record leaves its place in the row empty.

  Args:
    source: as for `batches`.
    encode: as for `batches`.
    collate: `(rows, shape=…)` -> batch of NumPy arrays; a row is a list of results of `encode`, the shape is the
      plan's.
    plan: batches with equal numbers of rows; each process reads its own of them.
    options: as for `batches`.
    known_bad: bad records that a scan has found already and the plan omits; they count.
  """

  def collate_rows(rows: Sequence[_PlannedRow]) -> Any:
    values = [[record.value for record in row.records] for row in rows]
    return collate(values, shape=rows[0].shape)

  return _planned(source, encode, collate_rows, plan, options, known_bad)


def ordered_batches(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[[list[Any], Int[np.ndarray, "B"]], Any],
  batch_size: int,
  options: ReadOptions = ReadOptions(),  # noqa: B008 (an immutable default)
  start: int = 0,
  skipped: Sequence[int] = (),
) -> Iterator[Any]:
  """Yields evaluation batches of one size: records `start`, `start + 1`, … once, in order.

  Args:
    source: as for `batches`.
    encode: as for `batches`.
    collate: `(rows, ids)` -> batch. The id is the number of the record, or −1 for a row that only fills the batch:
      after the last record, and in place of a bad one. Such a row repeats another record, so that the contents of
      every batch are ordinary.
    batch_size: rows of a batch over all processes.
    options: as for `batches`.
    start: number of the first record.
    skipped: bad records before `start` that an earlier run skipped. They are read again, so that this run counts and
      reports them too.
  """
  if not 0 <= start <= len(source):
    raise ValueError(f"start is {start}; the source has records 0 … {len(source) - 1}.")
  tally = BadRecordTally(len(source), options.max_bad_share)
  for number in skipped:
    tally.is_good(read_row(source, encode, number))
  plan = _consecutive_plan(range(start, len(source)), batch_size)
  filler = None
  for group in _planned(source, encode, list, plan, options, tally.bad) if plan else ():
    filler = next((row.records[0].value for row in group if row.records), filler)
    if filler is None:
      filler = _first_good(source, encode, options.max_bad_share)
    ids = [row.records[0].number if row.records else -1 for row in group]
    values = [row.records[0].value if row.records else filler for row in group]
    yield collate(values, np.array(ids, np.int32))


def _planned(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[[Sequence[_PlannedRow]], Any],
  plan: Sequence[PlannedBatch],
  options: ReadOptions,
  known_bad: Mapping[int, BadRecord],
) -> grain.DatasetIterator:
  """Returns an iterator over `collate(rows)` of each batch of a plan, bad records removed from the rows."""
  own = options.shard.rows(len(plan[0].rows))

  def row(local: int) -> _PlannedRow:
    batch, offset = divmod(local, len(own))
    numbers = plan[batch].rows[own[offset]]
    return _PlannedRow(plan[batch].shape, [read_row(source, encode, number) for number in numbers])

  local_rows = grain.MapDataset.range(len(plan) * len(own))
  stream = local_rows.map(row).to_iter_dataset(options.for_grain(len(own)))
  tally = BadRecordTally(len(source), options.max_bad_share, known_bad)
  stream = SkipBadRecords(stream, _keep_good_records, tally, options.shard)
  return _prefetched(stream.batch(len(own), batch_fn=collate), options)


def _prefetched(stream: grain.IterDataset, options: ReadOptions) -> grain.DatasetIterator:
  prefetch = options.prefetch
  return iter(grain_experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=prefetch))


def _consecutive_plan(numbers: range, batch_size: int) -> list[PlannedBatch]:
  """Returns batches of single records in order; the last one ends in empty rows."""
  rows = [(number,) for number in numbers]
  rows += [()] * (-len(rows) % batch_size)
  starts = range(0, len(rows), batch_size)
  unused = Size(0, 0)  # the rows of one prompt shape are collated without a plan's shape
  return [PlannedBatch(unused, tuple(rows[start : start + batch_size])) for start in starts]


def _first_good(source: Source, encode: Callable[[Any], Any], max_bad_share: float) -> Any:
  """Returns the first usable row; bad records before it are reported when the order reaches them."""
  rows = [read_row(source, encode, 0)]
  while rows[-1].bad is not None:
    if len(rows) == len(source):
      raise TooManyBadRecords([row.bad for row in rows if row.bad], len(source), max_bad_share)
    rows.append(read_row(source, encode, len(rows)))
  return rows[-1].value


def _keep_good(row: RecordRow, tally: BadRecordTally) -> RecordRow | None:
  return row if tally.is_good(row) else None


def _keep_good_records(row: _PlannedRow, tally: BadRecordTally) -> _PlannedRow:
  return row._replace(records=[record for record in row.records if tally.is_good(record)])
