"""Input pipeline: record numbers in, batches of NumPy arrays out (grain).

  cursor 0, 1, 2, …  →  this process's rows  →  number of the record (shuffled anew every epoch)
                     →  encode  →  broken records left out  →  collate  →  prefetch

`planned` does the same for a plan of batches (see `batch_plan`), where a row may hold several records.

The global order of the rows is a pure function of (seed, cursor), or of the plan: it does not depend on how many
processes, threads or restarts read it. Iterators are grain's: `get_state()` is JSON-able and exact for the batch last
received, however many batches lie prefetched behind it.
"""

import copy
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
from grain import experimental as grain_experimental
from jaxtyping import Int

from spatial_vlm.data.batch_plan import PlannedBatch
from spatial_vlm.data.records import BadRecord, BadRecordError, TooManyBadRecords, UnusableRecord
from spatial_vlm.processor.image import UnreadableImage

logger = logging.getLogger(__name__)


class Source(Protocol):
  """Random access to records."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...

  def place(self, index: int) -> tuple[str, int]:
    """Where the record stands, for reports: file and line."""
    ...


class Shard(NamedTuple):
  """This process among those that together read each batch."""

  index: int = 0
  count: int = 1


class _Row(NamedTuple):
  number: int
  """Of the record; −1 behind the last one."""
  value: Any = None
  """What `encode` returned."""
  bad: BadRecord | None = None


class _PlannedRow(NamedTuple):
  shape: Any
  records: list[_Row]


def prompt_order(seed: int, count: int) -> Callable[[int], int]:
  """Endless shuffled stream over `count` records: cursor c ≥ 0 → number of the record.

  Each epoch (`count` cursors) is a permutation of its own; a pure function of (seed, cursor).
  """
  if count < 1:
    raise ValueError("the source holds no records; check the path and the split it was read from.")
  permuted = grain.MapDataset.range(count).seed(seed).shuffle()
  return lambda cursor: int(permuted[int(cursor)])


def batches(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[[list[Any]], Any],
  *,
  batch_size: int,
  seed: int,
  epochs: int | None = None,
  shuffle: bool = True,
  workers: int = 0,
  prefetch: int = 2,
  max_bad_share: float = 0.01,
  shard: Shard = Shard(),  # noqa: B008 (an immutable default)
) -> grain.DatasetIterator:
  """Training batches; resumes exactly where a state of the same arguments was taken.

  Args:
    source: records, read by number.
    encode: record -> row. A record for which it, or the source, raises BadRecordError, UnreadableImage or
      UnusableRecord is left out.
    collate: list of rows -> batch of NumPy arrays.
    batch_size: rows of a batch over all processes; each process gets its `batch_size / shard.count` of them.
    seed: of the order, in [0, 2³²).
    epochs: passes over the source, rounded down to whole batches (`num_batches`); None is endless.
    shuffle: a new permutation every epoch, else the order of the source.
    workers: threads that encode. 0 encodes in the prefetching thread: best for rows of about a millisecond
      that hold the interpreter lock; large photographs, decoded outside the lock, want several.
    prefetch: batches made ready in a background thread; 0 makes them when asked for.
    max_bad_share: of the source's records; if this process finds more of them broken, TooManyBadRecords is raised.
      A record left out is made up for by the next one, so that every process yields the same number of batches.
    shard: of this process. Rows of the global batch are cut in contiguous blocks.
  """
  rows = _rows_per_process(batch_size, shard)
  order = prompt_order(seed, len(source)) if shuffle else lambda cursor: cursor % len(source)
  count = sys.maxsize if epochs is None else num_batches(len(source), batch_size, epochs)

  def row(local: int) -> _Row:
    batch, offset = divmod(local, rows)
    return _encode_row(source, encode, order(batch * batch_size + shard.index * rows + offset))

  stream = (
    grain.MapDataset.range(sys.maxsize).map(row).to_iter_dataset(_read_options(workers, rows))
  )
  stream = _LeaveOutBroken(stream, _keep_good, _Tally(len(source), max_bad_share))
  stream = stream.batch(rows, batch_fn=lambda kept: collate([row.value for row in kept]))
  stream = grain_experimental.LimitIterDataset(stream, count)
  return iter(grain_experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=prefetch))


def planned(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[..., Any],
  plan: Sequence[PlannedBatch],
  *,
  workers: int = 0,
  prefetch: int = 2,
  max_bad_share: float = 0.01,
  known_bad: Mapping[int, BadRecord] = MappingProxyType({}),
  shard: Shard = Shard(),  # noqa: B008 (an immutable default)
) -> grain.DatasetIterator:
  """The batches of a plan; resumes exactly where a state of the same arguments was taken.

  Args:
    collate: `(rows, shape=…)` -> batch of NumPy arrays; a row is a list of what `encode` returned, the shape is that
      of the plan.
    plan: all its batches have as many rows; each process gets a block of them.
    max_bad_share: as for `batches`, but a record left out leaves its place in the row empty: the plan stands.
    known_bad: broken records that a look at the source has shown already, and that are not in the plan; they count.
    Others: as for `batches`.
  """
  rows = _rows_per_process(len(plan[0].rows), shard)

  def row(local: int) -> _PlannedRow:
    batch, offset = divmod(local, rows)
    numbers = plan[batch].rows[shard.index * rows + offset]
    return _PlannedRow(
      plan[batch].shape, [_encode_row(source, encode, number) for number in numbers]
    )

  stream = grain.MapDataset.range(len(plan) * rows).map(row)
  stream = stream.to_iter_dataset(_read_options(workers, rows))
  tally = _Tally(len(source), max_bad_share, known_bad)
  stream = _LeaveOutBroken(stream, _keep_good_of_row, tally)
  stream = stream.batch(
    rows,
    batch_fn=lambda kept: collate(
      [[record.value for record in row.records] for row in kept], shape=kept[0].shape
    ),
  )
  return iter(grain_experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=prefetch))


def scan(
  source: Source, look: Callable[[Any], Any], *, workers: int = 0, max_bad_share: float = 0.01
) -> tuple[dict[int, Any], dict[int, BadRecord]]:
  """What `look` returns for each record, and the broken ones, both by number of the record.

  Broken is what `batches` would leave out; too many of them raise TooManyBadRecords.
  """
  stream = grain.MapDataset.range(len(source)).map(lambda number: _encode_row(source, look, number))
  tally = _Tally(len(source), max_bad_share)
  rows = stream.to_iter_dataset(_read_options(workers, _SURVEYED_AHEAD))
  return {row.number: row.value for row in rows if tally.is_good(row)}, tally.bad


_SURVEYED_AHEAD = 64


def num_batches(records: int, batch_size: int, epochs: int) -> int:
  """Whole batches in `epochs` passes over `records` records."""
  count = records * epochs // batch_size
  if count < 1:
    raise ValueError(
      f"{records} records × {epochs} epochs do not fill one batch of {batch_size}; "
      "lower batch_size, or give more records or epochs."
    )
  return count


def skipped(state: dict[str, Any]) -> dict[int, BadRecord]:
  """The broken records that this process has met, by number, from `get_state()` of `batches(…)` or `planned(…)`."""
  return _bad_from_json(_tallied(state)["bad"])


def own_state(states: Sequence[dict[str, Any]], shard: Shard) -> dict[str, Any]:
  """The state from which this process goes on; `states` are those of all processes of the run that took them.

  Where the number of processes has changed, each goes on behind the batch that all had received, and counts every
  record that one of them left out. Raises ValueError where `batches(…)` left records out, since the next ones came
  in their places: what each process has read then depends on how many there are.
  """
  if len(states) == shard.count:
    return states[shard.index]
  bad = {number: record for state in states for number, record in _tallied(state)["bad"].items()}
  state = copy.deepcopy(states[0])
  tallied = _tallied(state)
  if bad and tallied is not state:
    raise ValueError(
      f"{len(states)} processes have read this far and left out {len(bad)} broken records; {shard.count} cannot read "
      f"on in their place: start {len(states)}, or begin anew in another --workdir"
    )
  tallied["bad"] = bad
  tallied["parent"]["next_index"] = tallied["parent"]["next_index"] * len(states) // shard.count
  return state


def _tallied(state: dict[str, Any]) -> dict[str, Any]:
  """The part of an iterator's state that tells what was left out."""
  while "bad" not in state:
    state = state["parent"]
  return state


def ordered(
  source: Source,
  encode: Callable[[Any], Any],
  collate: Callable[[list[Any], Int[np.ndarray, "B"]], Any],
  *,
  batch_size: int,
  start: int = 0,
  skipped: Sequence[int] = (),
  workers: int = 0,
  prefetch: int = 2,
  max_bad_share: float = 0.01,
  shard: Shard = Shard(),  # noqa: B008 (an immutable default)
) -> Iterator[Any]:
  """Evaluation batches: records `start`, `start + 1`, … once, in order, in batches of one size.

  `collate(rows, ids)` receives the number of each row's record, −1 where the row is only there to fill the batch:
  behind the last record, and in place of a broken one (logged and counted as by `batches`). Such rows repeat
  another record's, so that every batch has ordinary contents. Those that an earlier run had `skipped` before
  `start` are read once more: they count, and are reported, as if this run had met them.
  """
  if not 0 <= start <= len(source):
    raise ValueError(f"start is {start}; the source has records 0 … {len(source) - 1}.")
  rows = _rows_per_process(batch_size, shard)

  def row(local: int) -> _Row:
    batch, offset = divmod(local, rows)
    number = start + batch * batch_size + shard.index * rows + offset
    return _encode_row(source, encode, number) if number < len(source) else _Row(-1)

  total = -(-(len(source) - start) // batch_size) * rows
  stream = grain.MapDataset.range(total).map(row).to_iter_dataset(_read_options(workers, rows))
  stream = stream.batch(rows, batch_fn=list)
  tally = _Tally(len(source), max_bad_share)
  for number in skipped:
    tally.is_good(_encode_row(source, encode, number))
  filler = None
  for group in grain_experimental.ThreadPrefetchIterDataset(stream, prefetch_buffer_size=prefetch):
    good = [tally.is_good(row) and row.number >= 0 for row in group]
    filler = next((row.value for row, ok in zip(group, good, strict=True) if ok), filler)
    if filler is None:
      filler = _first_good(source, encode, tally)
    ids = [row.number if ok else -1 for row, ok in zip(group, good, strict=True)]
    values = [row.value if ok else filler for row, ok in zip(group, good, strict=True)]
    yield collate(values, np.array(ids, np.int32))


class Reader:
  """Number of a record -> its row, None where it cannot be used: that is logged once and counted.

  Raises TooManyBadRecords when they exceed `max_bad_share`.
  """

  def __init__(self, source: Source, encode: Callable[[Any], Any], max_bad_share: float):
    self.source, self._encode = source, encode
    self._tally = _Tally(len(source), max_bad_share)

  def __len__(self) -> int:
    return len(self.source)

  def __call__(self, number: int) -> Any:
    row = _encode_row(self.source, self._encode, number)
    return row.value if self._tally.is_good(row) else None

  def __iter__(self) -> Iterator[Any]:
    """The rows that can be used, in order."""
    return (row for number in range(len(self)) if (row := self(number)) is not None)

  @property
  def skipped(self) -> list[int]:
    return sorted(self._tally.bad)


def _rows_per_process(batch_size: int, shard: Shard) -> int:
  if batch_size < 1 or batch_size % shard.count:
    raise ValueError(
      f"batch_size is {batch_size}; it must be a positive multiple of the {shard.count} processes that read it."
    )
  return batch_size // shard.count


def _read_options(workers: int, rows: int) -> grain.ReadOptions:
  return grain.ReadOptions(
    num_threads=workers, prefetch_buffer_size=max(workers, rows) if workers else 0
  )


def _encode_row(source: Source, encode: Callable[[Any], Any], number: int) -> _Row:
  try:
    return _Row(number, encode(source[number]))
  except BadRecordError as error:
    return _Row(number, bad=error.bad)
  except (UnreadableImage, UnusableRecord) as error:
    return _Row(number, bad=BadRecord(*source.place(number), str(error)))


def _first_good(source: Source, encode: Callable[[Any], Any], tally: "_Tally") -> Any:
  rows = (_encode_row(source, encode, number) for number in range(len(source)))
  return next(row.value for row in rows if tally.is_good(row))


class _Tally:
  """The broken records so far: each is logged once; too many of them raise TooManyBadRecords."""

  def __init__(
    self,
    records: int,
    max_bad_share: float,
    bad: Mapping[int, BadRecord] = MappingProxyType({}),
  ):
    self.records, self.max_bad_share = records, max_bad_share
    self.bad = dict(bad)

  def is_good(self, row: _Row) -> bool:
    if row.bad is None:
      return True
    if row.number not in self.bad:
      self.bad[row.number] = row.bad
      logger.warning("left out %s", row.bad)
    if len(self.bad) > self.max_bad_share * self.records or len(self.bad) == self.records:
      raise TooManyBadRecords(list(self.bad.values()), self.records, self.max_bad_share)
    return False


def _keep_good(row: _Row, tally: _Tally) -> _Row | None:
  return row if tally.is_good(row) else None


def _keep_good_of_row(row: _PlannedRow, tally: _Tally) -> _PlannedRow:
  return row._replace(records=[record for record in row.records if tally.is_good(record)])


class _LeaveOutBroken(grain.IterDataset):
  """What `keep(element, tally)` leaves of each element, if anything; the tally is part of the iterator's state, so
  that a resumed run counts on."""

  def __init__(self, parent: grain.IterDataset, keep: Callable[[Any, Any], Any], tally: _Tally):
    super().__init__(parent)
    self._keep, self._tally = keep, tally

  def __iter__(self) -> grain.DatasetIterator:
    return _LeaveOutBrokenIterator(iter(self._parent), self._keep, copy.deepcopy(self._tally))


class _LeaveOutBrokenIterator(grain.DatasetIterator):
  def __init__(
    self, parent: grain.DatasetIterator, keep: Callable[[Any, _Tally], Any], tally: _Tally
  ):
    super().__init__(parent)
    self._keep, self._tally = keep, tally

  def __next__(self) -> Any:
    kept = (self._keep(element, self._tally) for element in self._parent)
    return next(element for element in kept if element is not None)

  def get_state(self) -> dict[str, Any]:
    bad = {str(number): list(dataclasses.astuple(bad)) for number, bad in self._tally.bad.items()}
    return {"parent": self._parent.get_state(), "bad": bad}

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state["parent"])
    self._tally.bad = _bad_from_json(state["bad"])


def _bad_from_json(bad: dict[str, list]) -> dict[int, BadRecord]:
  return {int(number): BadRecord(*fields) for number, fields in bad.items()}
