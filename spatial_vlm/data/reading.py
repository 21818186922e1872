"""Reading single records: access by number, unusable records reported and counted, options of every reader."""

import logging
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import grain

from spatial_vlm.data.records import BadRecord, BadRecordError, TooManyBadRecords, UnusableRecord
from spatial_vlm.process_rows import Shard
from spatial_vlm.processor.image import UnreadableImage

logger = logging.getLogger(__name__)

_SCANNED_AHEAD = 64
"""Records that the threads of `scan` read ahead."""


class Source(Protocol):
  """Random access to records."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Any: ...

  def origin(self, index: int) -> tuple[str, int]:
    """Returns the file and the line of a record, for reports."""
    ...


class ReadOptions(NamedTuple):
  """How records are read; nothing here changes the order or the contents of the batches."""

  workers: int = 0
  """Threads that encode. 0 encodes in the prefetching thread: best for rows of about a millisecond that hold the
  interpreter lock. Large photographs are decoded outside the lock; give several threads."""
  prefetch: int = 2
  """Batches prepared in a background thread; 0 prepares them on demand."""
  max_bad_share: float = 0.01
  """Share of the source's records that may be unusable; beyond it this process raises TooManyBadRecords."""
  shard: Shard = Shard()
  """The rows of a global batch that this process reads."""

  def for_grain(self, rows: int) -> grain.ReadOptions:
    """Returns grain's options for a stage that yields `rows` rows per batch."""
    ahead = max(self.workers, rows) if self.workers else 0
    return grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=ahead)


class RecordRow(NamedTuple):
  """A record after reading and encoding."""

  number: int
  """Of the record."""
  value: Any = None
  """Result of `encode`; None for a bad record."""
  bad: BadRecord | None = None


def read_row(source: Source, encode: Callable[[Any], Any], number: int) -> RecordRow:
  """Reads and encodes one record; BadRecordError, UnreadableImage and UnusableRecord make it a bad record."""
  try:
    return RecordRow(number, encode(source[number]))
  except BadRecordError as error:
    return RecordRow(number, bad=error.bad)
  except (UnreadableImage, UnusableRecord) as error:
    return RecordRow(number, bad=BadRecord(*source.origin(number), str(error)))


class BadRecordTally:
  """Counts the bad records of a source: logs each once and raises TooManyBadRecords beyond a share."""

  def __init__(
    self,
    records: int,
    max_bad_share: float,
    bad: Mapping[int, BadRecord] = MappingProxyType({}),
  ):
    self.records, self.max_bad_share = records, max_bad_share
    self.bad = dict(bad)
    """By number of the record."""

  def is_good(self, row: RecordRow) -> bool:
    if row.bad is None:
      return True
    if row.number not in self.bad:
      self.bad[row.number] = row.bad
      logger.warning("skipped %s", row.bad)
    if len(self.bad) > self.max_bad_share * self.records or len(self.bad) == self.records:
      raise TooManyBadRecords(list(self.bad.values()), self.records, self.max_bad_share)
    return False


class Reader:
  """Maps the number of a record to its row, or to None if the record is unusable; each of those is logged once.

  Raises TooManyBadRecords when their share exceeds `max_bad_share`.
  """

  def __init__(self, source: Source, encode: Callable[[Any], Any], max_bad_share: float):
    self.source, self._encode = source, encode
    self._tally = BadRecordTally(len(source), max_bad_share)

  def __len__(self) -> int:
    return len(self.source)

  def __call__(self, number: int) -> Any:
    row = read_row(self.source, self._encode, number)
    return row.value if self._tally.is_good(row) else None

  def __iter__(self) -> Iterator[Any]:
    """Yields the usable rows in order."""
    return (row for number in range(len(self)) if (row := self(number)) is not None)

  @property
  def skipped(self) -> list[int]:
    """Numbers of the unusable records read so far."""
    return sorted(self._tally.bad)


def scan(
  source: Source, look: Callable[[Any], Any], *, workers: int = 0, max_bad_share: float = 0.01
) -> tuple[dict[int, Any], dict[int, BadRecord]]:
  """Returns `look(record)` of each usable record, and the bad records, both by number of the record.

  Raises TooManyBadRecords beyond `max_bad_share`.
  """
  stream = grain.MapDataset.range(len(source)).map(lambda number: read_row(source, look, number))
  tally = BadRecordTally(len(source), max_bad_share)
  rows = stream.to_iter_dataset(ReadOptions(workers).for_grain(_SCANNED_AHEAD))
  return {row.number: row.value for row in rows if tally.is_good(row)}, tally.bad
