"""VSR's records: read, checked and matched with their images.

A record that cannot be used is reported with its file and line, counted and left out; beyond a share the reading stops.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8

from spatial_vlm.answers import Box
from spatial_vlm.config import UsageError
from spatial_vlm.data.image_files import ImageFiles, ImageLocations
from spatial_vlm.data.image_locations import UnusableArchive
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.processor.image import UnreadableImage

_log = logging.getLogger(__name__)

Listed = TypeVar("Listed")
Opened = TypeVar("Opened")


@dataclasses.dataclass(frozen=True)
class Record:
  """One line of VSR, with its field names; votes are JSON lists of validators, as strings."""

  image: str
  image_link: str
  caption: str
  label: int
  """1 true, 0 false."""
  relation: str
  annotator_id: int
  vote_true_validator_id: str
  vote_false_validator_id: str
  subj: str | None = None
  obj: str | None = None
  reference_frame: float | None = None

  @property
  def votes(self) -> tuple[int, int]:
    """Validators who hold the statement true, and those who hold it false."""
    true, false = (len(json.loads(getattr(self, name))) for name in _VOTE_FIELDS)
    return true, false

  @property
  def agreement(self) -> float | None:
    """Share of the validators who agree with the label; None without votes."""
    true, false = self.votes
    return (true if self.label else false) / (true + false) if true + false else None

  @property
  def category(self) -> str:
    """Meta-category of the relation; those that VSR does not know are Unallocated."""
    return META_CATEGORY.get(self.relation, "Unallocated")

  def to_json(self) -> dict[str, Any]:
    """Fields as VSR writes them; optional ones only where they are known."""
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if v is not None or k not in _OPTIONAL}


_OPTIONAL = ("subj", "obj", "reference_frame")
_FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_TEXT_FIELDS = ("image", "image_link", "caption", "relation")
_VOTE_FIELDS = ("vote_true_validator_id", "vote_false_validator_id")


@dataclasses.dataclass(frozen=True)
class Example:
  """A statement with its picture; `boxes` are those known, by name, in 0–1000 (none for VSR itself)."""

  record: Record
  image: UInt8[np.ndarray, "H W 3"]
  boxes: dict[str, Box]
  id: int


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record left out: where it stands, counted from line 1, and why."""

  file: str
  line: int
  reason: str

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: {self.reason}"


class UnusableRecord(ValueError):
  """Why a record cannot be used; whoever reads the record adds where it stands (`place` of its source)."""


class BadRecordError(UnreadableImage):
  """Raised for a single example whose image cannot be read."""

  def __init__(self, bad: BadRecord):
    super().__init__(str(bad))
    self.bad = bad


class TooManyBadRecords(UsageError):
  """More records were left out than the configured share allows."""

  def __init__(self, bad: list[BadRecord], total: int, max_bad_share: float):
    reasons = "".join(f"\n  {record}" for record in bad[:5])
    super().__init__(
      f"{len(bad)} of {total} records ({len(bad) / total:.1%}) cannot be used, allowed are"
      f" {max_bad_share:.1%}; mend the data or raise max_bad_share. The first:{reasons}"
    )
    self.bad = bad


def read_records(
  jsonl: epath.PathLike, images: ImageLocations, max_bad_share: float = 0.01
) -> tuple[list[Record], list[BadRecord]]:
  """Reads a file of records and leaves out those that cannot be used (see `BadRecord`).

  Images are looked up, not opened. Raises TooManyBadRecords, or ValueError for a file without any record.
  """
  numbered, bad = read_lines(jsonl, ImageFiles(images), parse, max_bad_share)
  return [record for _, record in numbered], bad


class JsonlSource:
  """Random-access source of the usable examples of a file of records.

  `boxes` is a file of {"image": name, "boxes": {object: [x1, y1, x2, y2]}} lines, as `spatial-vlm scenes` writes it.
  An image that turns out unreadable raises BadRecordError from `source[i]`; whoever iterates counts and skips it.
  """

  def __init__(
    self,
    jsonl: epath.PathLike,
    images: ImageLocations,
    boxes: epath.PathLike | None = None,
    max_bad_share: float = 0.01,
  ):
    self.jsonl, self.image_files = epath.Path(jsonl), ImageFiles(images)
    self.max_bad_share = max_bad_share
    self._numbered, self.bad = read_lines(jsonl, self.image_files, parse, max_bad_share)
    self._boxes = read_boxes(boxes) if boxes is not None else {}

  def __repr__(self) -> str:
    return f"JsonlSource({os.fspath(self.jsonl)!r}, {len(self)} records)"

  def __len__(self) -> int:
    return len(self._numbered)

  def __getitem__(self, index: int) -> Example:
    record, boxes = self.describe(index)
    line = self._numbered[index][0]
    image = np.asarray(open_listed(self.jsonl, line, self.image_files.open, record.image))
    return Example(record, image, boxes, int(index))

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def describe(self, index: int) -> tuple[Record, dict[str, Box]]:
    """The record and its boxes; the image is not opened."""
    record = self._numbered[index][1]
    return record, self._boxes.get(record.image, {})

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Image and caption of each."""
    return [(record.image, record.caption) for _, record in self._numbered]

  def place(self, index: int) -> tuple[str, int]:
    """File and line."""
    return os.fspath(self.jsonl), self._numbered[index][0]

  def image_name(self, index: int) -> str:
    return self._numbered[index][1].image


class Take:
  """The first `count` examples of a source."""

  def __init__(self, source: JsonlSource, count: int):
    if count < 0:
      raise ValueError(f"limit is {count}; give the number of examples, 0 for all")
    self.source, self.count = source, min(count, len(source))

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Example:
    return self.source[index]

  def place(self, index: int) -> tuple[str, int]:
    return self.source.place(index)


def open_listed(
  jsonl: epath.Path, line: int, read: Callable[[Listed], Opened], what: Listed
) -> Opened:
  """What `read` makes of what a line names; raises BadRecordError, with file and line, when it is unreadable."""
  try:
    return read(what)
  except UnreadableImage as error:
    raise BadRecordError(BadRecord(os.fspath(jsonl), line, str(error))) from error


def read_boxes(file: epath.PathLike) -> dict[str, dict[str, Box]]:
  """Named boxes of each image, from the file that `spatial-vlm scenes` writes beside the records.

  A program writes it, so a line that is broken makes the whole file suspect: ValueError with file and line.
  """
  found = {}
  for number, line in enumerate(epath.Path(file).read_bytes().splitlines(), start=1):
    try:
      entry = json.loads(line)
      found[entry["image"]] = named_boxes(entry["boxes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"{os.fspath(file)}:{number}: no image with named boxes ({error!r}); make the file anew"
      ) from error
  return found


def named_boxes(value: Any) -> dict[str, Box]:
  """Boxes as JSON holds them; raises ValueError, TypeError or AttributeError for anything else."""
  return {name: _box(box) for name, box in value.items()}


def _box(value: Any) -> Box:
  x1, y1, x2, y2 = value
  if not (0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
    raise ValueError(f"{value} is no box x1 < x2, y1 < y2 in 0–1000")
  return x1, y1, x2, y2


def read_lines(
  jsonl: epath.PathLike,
  pictures: ImageFiles | None,
  parse: Callable[[bytes], Any],
  max_bad_share: float,
) -> tuple[list[tuple[int, Any]], list[BadRecord]]:
  """(line number, what `parse` makes of the line) for every line whose `image` is among the pictures, and the others.

  `parse` raises ValueError with the reason for a line that it refuses. Without `pictures` none is looked up.
  """
  if not 0 <= max_bad_share <= 1:
    raise ValueError(f"max_bad_share is {max_bad_share}; it is a share, from 0 to 1")
  good: list[tuple[int, Any]] = []
  bad: list[BadRecord] = []
  for number, line in enumerate(epath.Path(jsonl).read_bytes().split(b"\n"), start=1):
    if not line.strip():
      continue
    try:
      record = parse(line)
      if pictures is not None:
        pictures.find(record.image)
      good.append((number, record))
    except UnusableArchive:
      raise  # not the record's fault
    except (ValueError, RecursionError) as error:  # the latter from JSON nested very deeply
      bad.append(BadRecord(os.fspath(jsonl), number, str(error)))
      _log.warning("left out %s", bad[-1])
  total = len(good) + len(bad)
  if not total:
    raise ValueError(f"{os.fspath(jsonl)} holds no record; give a file with one JSON object a line")
  if len(bad) > max_bad_share * total:
    raise TooManyBadRecords(bad, total, max_bad_share)
  return good, bad


def parse(line: bytes) -> Record:
  """Reads one line; raises ValueError (JSON and encoding errors are such) with the reason for what is no record."""
  return from_fields(json.loads(line.decode()))


def from_fields(fields: Any) -> Record:
  """The record of one JSON object; raises ValueError with the reason."""
  if not isinstance(fields, dict):
    raise ValueError(f"a record is a JSON object, got {type(fields).__name__}")
  if unknown := sorted(set(fields) - set(_FIELDS)):
    raise ValueError(f"unknown fields {unknown}; known are {list(_FIELDS)}")
  if missing := [name for name in _FIELDS if name not in fields and name not in _OPTIONAL]:
    raise ValueError(f"missing fields {missing}")
  for name in _TEXT_FIELDS:
    if not isinstance(fields[name], str):
      raise ValueError(f"{name} is {fields[name]!r}; it has to be text")
  # bool is an int in Python, and 1.0 == 1: both are slips of whoever wrote the file.
  if type(fields["label"]) is not int or fields["label"] not in (0, 1):
    raise ValueError(f"label is {fields['label']!r}; allowed are 0 and 1")
  if type(fields["annotator_id"]) is not int:
    raise ValueError(f"annotator_id is {fields['annotator_id']!r}; it has to be a whole number")
  votes = {name: json.dumps(_votes(name, fields[name])) for name in _VOTE_FIELDS}
  optional = {name: _optional(name, fields.get(name)) for name in _OPTIONAL}
  return Record(**{**fields, **votes, **optional})


def _optional(name: str, value: Any) -> Any:
  """None where the value is not given, as null or as NaN."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  expected = (int, float) if name == "reference_frame" else (str,)
  if type(value) not in expected:
    raise ValueError(f"{name} is {value!r}; it has to be {expected[-1].__name__} or null")
  return value


def _votes(name: str, value: Any) -> list[int]:
  """Validators' numbers; a JSON string in VSR's splits, a list in its raw file."""
  votes = json.loads(value) if isinstance(value, str) else value
  if not isinstance(votes, list) or any(type(vote) is not int for vote in votes):
    raise ValueError(f"{name} is {value!r}; it has to be a list of whole numbers")
  return votes
