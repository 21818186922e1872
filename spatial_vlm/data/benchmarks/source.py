"""Random access to the usable questions of a benchmark's file."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
from etils import epath

from spatial_vlm.answers import Box
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.benchmarks.json_table import JsonTable
from spatial_vlm.data.benchmarks.parquet_table import ParquetTable
from spatial_vlm.data.benchmarks.table import Table
from spatial_vlm.data.benchmarks.tsv_table import TsvTable
from spatial_vlm.data.image_files import ImageFiles, ImageLocations
from spatial_vlm.data.records import (
  BadRecord,
  Example,
  TooManyBadRecords,
  open_listed,
  report_missing,
)
from spatial_vlm.processor.image import UnreadableImage, open_image

log = logging.getLogger(__name__)

_LOOKED_FOR = 20
"""Questions whose images are looked for before any is asked."""

TABLES: Mapping[str, Callable[[epath.PathLike], Table]] = {
  ".tsv": TsvTable,
  ".parquet": ParquetTable,
  ".json": JsonTable,
}
"""Suffix → reader of the file format."""

ToRecord = Callable[[Mapping[str, Any]], BenchmarkRecord | None]
"""Fields of a row → its question; None for a row that the task skips. Raises ValueError for a bad row."""


class BenchmarkSource:
  """The usable questions of a benchmark's file; see `records.ExampleSource`.

  Rows that hold no question are reported with file and line, and counted. `source[i]` raises BadRecordError for an
  image that cannot be read.

  Args:
    path: TSV, Parquet or JSON file, or a pattern of Parquet files (see `table.find_files`).
    images: locations of the images that the file only names; may be empty.
    boxes: must be None; benchmarks have no true boxes.
    max_bad_share: share of the rows that may be bad.
    to_record: reads the fields of a row.

  Raises:
    TooManyBadRecords: more rows are bad.
    NoImageFound: none of the first images that the file names is there.
    UsageError: the file has another format, or none of its rows holds a question.
  """

  def __init__(
    self,
    path: epath.PathLike,
    images: ImageLocations,
    boxes: epath.PathLike | None,
    max_bad_share: float,
    to_record: ToRecord,
  ):
    if boxes is not None:
      raise UsageError(
        f"data.boxes is {os.fspath(boxes)!r}; benchmarks have no true boxes: set it to ''"
      )
    self._table, self._images = open_table(path), images
    self.bad = list(self._table.bad)
    self._numbered: list[tuple[int, BenchmarkRecord]] = []
    skipped = self._read(to_record)
    total = len(self._numbered) + len(self.bad)
    if len(self.bad) > max_bad_share * total:
      raise TooManyBadRecords(self.bad, total, max_bad_share)
    if not self._numbered:
      raise UsageError(
        f"{os.fspath(path)} holds no question of this task; {skipped} rows are of another"
      )
    if images:
      self._check_images()
    if skipped:
      log.info("%d rows of %s belong to no category of this task", skipped, os.fspath(path))

  def __len__(self) -> int:
    return len(self._numbered)

  def __getitem__(self, index: int) -> Example:
    opened = open_listed(self.origin(index), self._open, index)
    first, *others = map(np.asarray, opened)
    return Example(self._numbered[index][1], first, {}, int(index), more_images=tuple(others))

  def describe(self, index: int) -> tuple[Any, dict[str, Box]]:
    """Returns the BenchmarkRecord; no boxes."""
    return self._numbered[index][1], {}

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Caption of each record, without an image: benchmarks name their images otherwise than the data they come from."""
    return [("", record.caption) for _, record in self._numbered]

  def origin(self, index: int) -> tuple[str, int]:
    """Returns file and line or row."""
    row = self._table.rows[self._numbered[index][0]]
    return row.file, row.line

  def image_name(self, index: int) -> str:
    """Returns the name of the record's image; a digest of its bytes if the file names none, equal for equal images."""
    number, record = self._numbered[index]
    if record.image != self._place(number):
      return record.image
    try:
      (first, *_) = self._table.images(number)
    except UnreadableImage:
      return record.image
    return first if isinstance(first, str) else hashlib.sha256(first).hexdigest()[:16]

  def _read(self, to_record: ToRecord) -> int:
    """Reads all rows; returns the number of those that the task skips."""
    skipped = 0
    for number, row in enumerate(self._table.rows):
      try:
        record = to_record(row.fields)
      except ValueError as error:
        self.bad.append(BadRecord(row.file, row.line, str(error)))
        continue
      if record is None:
        skipped += 1
        continue
      if not record.image:
        record = dataclasses.replace(record, image=self._place(number))
      self._numbered.append((number, record))
    for bad in self.bad:
      log.warning("skipped %s", bad)
    return skipped

  def _check_images(self) -> None:
    """Looks for the images of the first questions, up to one that is there or that the file holds."""
    missing = []
    for index in range(min(len(self), _LOOKED_FOR)):
      try:
        if any(
          isinstance(image, bytes) or self._files.find(image) for image in self._images_of(index)
        ):
          return
      except UnreadableImage as error:
        missing.append(BadRecord(*self.origin(index), str(error)))
    report_missing(missing, found=0)

  def _images_of(self, index: int) -> Sequence[bytes | str]:
    """Returns the images of a question, or their names."""
    number, record = self._numbered[index]
    return self._table.images(number) or [record.image]

  def _place(self, number: int) -> str:
    """Returns the name of an image that the file does not name."""
    row = self._table.rows[number]
    return f"{os.path.basename(row.file)}:{row.line}"

  def _open(self, index: int) -> Sequence[PIL.Image.Image]:
    return [
      open_image(image) if isinstance(image, bytes) else self._files.open(image)
      for image in self._images_of(index)
    ]

  @functools.cached_property
  def _files(self) -> ImageFiles:
    if not self._images:
      raise UsageError(
        "the file names its images and data.images is empty; give their folder or archive"
      )
    return ImageFiles(self._images)


def open_table(path: epath.PathLike) -> Table:
  """Returns the rows of a file, by its suffix; UsageError for a suffix that no benchmark has."""
  suffix = epath.Path(path).suffix.lower()
  if suffix not in TABLES:
    raise UsageError(
      f"{os.fspath(path)} is no file of a benchmark; its suffix must be {', '.join(TABLES)}"
    )
  return TABLES[suffix](path)
