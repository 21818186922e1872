"""TSV files of VLMEvalKit: one question a row, its images in base64.

Columns (`vlmeval/dataset/image_base.py`, `image_mcq.py`): `index`, `image`, `question`, `answer`, options in `A`, `B`,
…, and optionally `hint`, `category`, `l2-category`, `split`, `image_path`. They are read as VLMEvalKit reads them:

- `image` is base64, a list of base64 (JSON or Python), or, if it has at most 64 characters, the index of the row that
  holds the image.
- `image_path` names files, one or a list. It counts where a row has no `image`.
- Fields with tabs, quotes or line breaks are quoted. An empty field and `nan` are missing. Unlike in pandas, the words
  "None", "NA" and "null" are text, since they occur as options.

A file may hold gigabytes of images. It is read once for the other fields; an image is read from its place on demand.
"""

import ast
import csv
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.table import (
  MAX_IMAGE_BYTES,
  MAX_IMAGES,
  Row,
  column_name,
  decode_base64,
  find_files,
  present,
)
from spatial_vlm.data.records import BadRecord
from spatial_vlm.processor.image import UnreadableImage

REFERENCE_LENGTH = 64
"""Longest `image` that is the index of another row."""


class _Place(NamedTuple):
  """Where a row stands in its file."""

  offset: int
  length: int
  reference: str
  """Index of the row that holds the image; "" if it is this row."""


class TsvTable:
  """Rows of a TSV file; raises UsageError for a file without a header or the columns `question` and `answer`."""

  def __init__(self, path: epath.PathLike):
    (self._path,) = find_files(path)
    self.rows: list[Row] = []
    self.bad: list[BadRecord] = []
    self._places: list[_Place] = []
    self._by_index: dict[str, int] = {}
    csv.field_size_limit(max(csv.field_size_limit(), MAX_IMAGE_BYTES))
    with self._path.open("rb") as file:
      records = _records(file)
      self._header = self._read_header(next(records, None))
      for record in records:
        self._add(record)

  def images(self, number: int) -> list[bytes | str]:
    """Returns the images of a row, or their names; UnreadableImage where it holds neither or they are no base64."""
    fields = self._fields(number)
    seen = {number}
    while reference := self._places[number].reference:
      number = self._by_index.get(reference, -1)
      if number < 0 or number in seen:
        raise UnreadableImage(
          f"image refers to the row with index {reference!r}, which has no image"
        )
      seen.add(number)
      fields = {**fields, "image": self._fields(number)["image"]}
    if image := fields.get("image"):
      return [decode_base64(text) for text in _several(image)]
    if path := fields.get("image_path"):
      return [*_several(path)]
    raise UnreadableImage("the row has neither image nor image_path")

  def _read_header(self, record: "_Record | None") -> list[str]:
    names = [*map(column_name, (record or _NONE).fields)]
    if missing := [name for name in ("question", "answer") if name not in names]:
      raise UsageError(
        f"{os.fspath(self._path)} has no column {' and no column '.join(missing)}; its columns are "
        f"{', '.join(names) or 'none'}. Give a TSV of VLMEvalKit with answers: those of test splits are hidden"
      )
    if len({*names}) < len(names):
      raise UsageError(f"{os.fspath(self._path)} has a column twice: {', '.join(names)}")
    return names

  def _add(self, record: "_Record") -> None:
    if reason := record.error or self._fault(record.fields):
      self.bad.append(BadRecord(os.fspath(self._path), record.line, reason))
      return
    fields = _named(self._header, record.fields)
    image = fields.pop("image", None)
    reference = image if image is not None and len(image) <= REFERENCE_LENGTH else ""
    fields["image_name"] = fields.get("image_path") or reference or fields.get("index")
    if index := fields.get("index"):
      self._by_index[index] = len(self.rows)
    self._places.append(_Place(record.offset, record.length, reference))
    self.rows.append(Row(os.fspath(self._path), record.line, fields))

  def _fault(self, values: list[str]) -> str:
    if len(values) != len(self._header):
      return (
        f"the row has {len(values)} fields and the header {len(self._header)}; a quote may be open"
      )
    if any("\ufffd" in value for value in values):
      return "the row is not UTF-8"
    return ""

  def _fields(self, number: int) -> dict[str, Any]:
    place = self._places[number]
    with self._path.open("rb") as file:
      file.seek(place.offset)
      text = file.read(place.length).decode(errors="replace")
    lines = (f"{line}\n" for line in text.split("\n"))  # the only line break of the first reading
    return _named(self._header, next(csv.reader(lines, delimiter="\t")))


class _Record(NamedTuple):
  """A record of a file: where it is and what it holds."""

  line: int
  offset: int
  length: int
  fields: list[str]
  error: str = ""


_NONE = _Record(1, 0, 0, [])


def _records(file: BinaryIO) -> Iterator[_Record]:
  """Yields the records of a file with their place; a record may be several lines, since fields may be quoted."""
  read = [0, 0]  # bytes and lines

  def lines() -> Iterator[str]:
    for line in file:
      read[0] += len(line)
      read[1] += 1
      yield line.decode("utf-8-sig" if read[1] == 1 else "utf-8", errors="replace")

  reader = csv.reader(lines(), delimiter="\t")
  while True:
    offset, line = read[0], read[1] + 1
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield _Record(line, offset, read[0] - offset, [], f"the row is no TSV: {error}")
      continue
    if fields:
      yield _Record(line, offset, read[0] - offset, fields)


def _named(header: list[str], values: list[str]) -> dict[str, Any]:
  return {name: present(value) for name, value in zip(header, values, strict=True)}


def _several(text: str) -> list[str]:
  """Returns the texts of a list in JSON or Python, or the text itself; UnreadableImage for a broken or long list."""
  if not (text.startswith("[") and text.endswith("]")):
    return [text]
  try:
    found = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
    raise UnreadableImage(f"the list of images cannot be read: {type(error).__name__}") from error
  if not all(isinstance(item, str) for item in found) or not 0 < len(found) <= MAX_IMAGES:
    raise UnreadableImage(f"the list of images must hold 1 to {MAX_IMAGES} texts")
  return found
