"""Records read one at a time: unusable ones are reported once, counted and skipped."""

import pytest

from spatial_vlm.data.reading import Reader, scan
from spatial_vlm.data.records import BadRecord, BadRecordError, TooManyBadRecords, UnusableRecord


class Numbers:
  """Records 0 … count−1; those in `unreadable` raise as JsonlSource does."""

  def __init__(self, count, unreadable):
    self.count, self.unreadable = count, unreadable

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if index in self.unreadable:
      raise BadRecordError(BadRecord("numbers.jsonl", index + 1, "image is damaged"))
    return index

  def place(self, index):
    return "numbers.jsonl", index + 1


def encode(record):
  return {"id": record}


def test_a_reader_reports_each_broken_record_once(caplog):
  read = Reader(Numbers(9, unreadable=(2, 5)), encode, max_bad_share=0.3)
  assert len(read) == 9
  assert [read(number) is None for number in (1, 2, 5, 2)] == [False, True, True, True]
  assert read.skipped == [2, 5] and len(caplog.messages) == 2
  read = Reader(Numbers(9, unreadable=(2, 5)), encode, max_bad_share=0.2)
  assert read(5) is None
  with pytest.raises(TooManyBadRecords):
    read(2)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_scan_reads_every_record_and_separates_broken_ones(workers):
  def look(record):
    if record == 3:
      raise UnusableRecord("three is too long")
    return record * record

  found, bad = scan(Numbers(8, unreadable=(5,)), look, workers=workers, max_bad_share=0.25)
  assert found == {number: number**2 for number in (0, 1, 2, 4, 6, 7)}
  assert {number: record.reason for number, record in bad.items()} == {
    3: "three is too long",
    5: "image is damaged",
  }
  with pytest.raises(TooManyBadRecords, match="2 of 8 records"):
    scan(Numbers(8, unreadable=(5,)), look, workers=workers, max_bad_share=0.2)
