"""Records in VSR's format: read, checked and matched with their images.

A bad record is reported with its file and line, counted and skipped. Too many of them stop the reading.
"""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from etils import epath
from jaxtyping import UInt8

from spatial_vlm.answers import Box
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmark_record import BenchmarkRecord
from spatial_vlm.data.image_files import ImageFiles, ImageLocations
from spatial_vlm.data.image_locations import MissingImage, UnusableArchive
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.jsonl import parse_json
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.text import short_line

_log = logging.getLogger(__name__)

Listed = TypeVar("Listed")
Opened = TypeVar("Opened")


@dataclasses.dataclass(frozen=True)
class Record:
  """One record with VSR's field names; votes are JSON lists of validators, as strings."""

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
    """Numbers of validators who judge the statement true and false."""
    true, false = (len(json.loads(getattr(self, name))) for name in _VOTE_FIELDS)
    return true, false

  @property
  def agreement(self) -> float | None:
    """Share of the validators who agree with the label; None if there are no votes."""
    true, false = self.votes
    return (true if self.label else false) / (true + false) if true + false else None

  @property
  def category(self) -> str:
    """Meta-category of the relation; a relation outside VSR is Unallocated."""
    return META_CATEGORY.get(self.relation, "Unallocated")

  @property
  def options(self) -> tuple[str, ...]:
    """None: a statement is answered by yes or no (see `BenchmarkRecord`)."""
    return ()

  @property
  def right(self) -> str:
    """Empty: no statement asks for a word or a number."""
    return ""

  @property
  def strata(self) -> dict[str, str]:
    """Meta-category, and whether all validators agree with the label."""
    votes = {None: "none", 1.0: "unanimous"}.get(self.agreement, "divided")
    return {"category": self.category, "votes": votes}

  @property
  def group(self) -> str:
    """Empty: every statement counts alone."""
    return ""

  def to_json(self) -> dict[str, Any]:
    """Returns the fields as VSR writes them, without optional fields that are None."""
    fields = dataclasses.asdict(self)
    return {k: v for k, v in fields.items() if v is not None or k not in _OPTIONAL}


_OPTIONAL = ("subj", "obj", "reference_frame")
_FIELDS = tuple(field.name for field in dataclasses.fields(Record))
_TEXT_FIELDS = ("image", "image_link", "caption", "relation")
_VOTE_FIELDS = ("vote_true_validator_id", "vote_false_validator_id")


@dataclasses.dataclass(frozen=True)
class Example:
  """A statement with its image; `boxes` are the known ones, by name, in 0–1000 (none for VSR itself).

  Readers give every example an image. Only the control `text_only` of `evaluate` takes it away (None).
  """

  record: Record | BenchmarkRecord
  image: UInt8[np.ndarray, "H W 3"]
  boxes: dict[str, Box]
  id: int
  more_images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = dataclasses.field(default=(), kw_only=True)
  """Images after the first, of a question about several."""

  @property
  def images(self) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """All images in their order; [] where there is none."""
    return [] if self.image is None else [self.image, *self.more_images]


@dataclasses.dataclass(frozen=True)
class BadRecord:
  """A record that is skipped: its file, its line (counted from 1) and the reason."""

  file: str
  line: int
  reason: str

  def __str__(self) -> str:
    return f"{self.file}:{self.line}: {short_line(self.reason)}"


class UnusableRecord(ValueError):
  """The reason why a record cannot be used; the reader adds its file and line (`origin` of the source)."""


class BadRecordError(UnreadableImage):
  """Raised for a single example whose image cannot be read."""

  def __init__(self, bad: BadRecord):
    super().__init__(str(bad))
    self.bad = bad


class TooManyBadRecords(UsageError):
  """More records are bad than the configured share allows."""

  def __init__(self, bad: list[BadRecord], total: int, max_bad_share: float):
    reasons = "".join(f"\n  {record}" for record in bad[:5])
    super().__init__(
      f"{len(bad)} of {total} records ({len(bad) / total:.1%}) cannot be used, allowed are"
      f" {max_bad_share:.1%}; repair the data or raise max_bad_share. The first:{reasons}"
    )
    self.bad = bad


class NoImageFound(UsageError):
  """None of the images that a file of records names is where they were said to be."""


def report_missing(missing: Sequence[BadRecord], found: int) -> None:
  """Logs in one line how many records of a file lack their image, with the first of them.

  Args:
    missing: these records.
    found: number of the records whose image is there.

  Raises:
    NoImageFound: there is no such record: the location of the images is at fault.
  """
  if missing and not found:
    raise NoImageFound(
      f"{missing[0].file}: none of {len(missing)} records has its image; give the folder or archive that holds them. "
      f"The first: {missing[0]}"
    )
  if missing:
    first = "; ".join(map(str, missing[:3]))
    more = "; …" if len(missing) > 3 else ""
    _log.warning("skipped %d records without their image: %s%s", len(missing), first, more)


def read_records(
  jsonl: epath.PathLike, images: ImageLocations, max_bad_share: float = 0.01
) -> tuple[list[Record], list[BadRecord]]:
  """Returns the usable records of a file and the bad ones.

  Images are looked up, not opened.

  Raises:
    TooManyBadRecords: more than `max_bad_share` of the records are bad.
    ValueError: the file holds no record.
  """
  numbered, bad = read_lines(jsonl, ImageFiles(images), parse, max_bad_share)
  return [record for _, record in numbered], bad


class JsonlSource:
  """Random-access source of the usable examples of a file of records.

  `source[i]` raises BadRecordError for an unreadable image; the caller counts and skips it.

  Args:
    jsonl: file of records.
    images: locations of the images.
    boxes: file of {"image": name, "boxes": {object: [x1, y1, x2, y2]}} lines, as `spatial-vlm scenes` writes it.
    max_bad_share: share of the records that may be bad.
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
    image = np.asarray(open_listed(self.origin(index), self.image_files.open, record.image))
    return Example(record, image, boxes, int(index))

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def describe(self, index: int) -> tuple[Record, dict[str, Box]]:
    """Returns the record and its boxes without opening the image."""
    record = self._numbered[index][1]
    return record, self._boxes.get(record.image, {})

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Image and caption of each record."""
    return [(record.image, record.caption) for _, record in self._numbered]

  def origin(self, index: int) -> tuple[str, int]:
    """Returns file and line."""
    return os.fspath(self.jsonl), self._numbered[index][0]

  def image_name(self, index: int) -> str:
    return self._numbered[index][1].image


class ExampleSource(Protocol):
  """Random access to the usable examples of a file of records."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...

  def describe(self, index: int) -> tuple[Record, dict[str, Box]]:
    """Returns the record and its boxes without opening the image."""
    ...

  def origin(self, index: int) -> tuple[str, int]:
    """Returns file and line of the record, for reports."""
    ...

  def image_name(self, index: int) -> str:
    """Returns the name of the record's image."""
    ...

  @property
  def bad(self) -> list[BadRecord]:
    """The lines or rows that could not be read as records."""
    ...

  @property
  def pairs(self) -> list[tuple[str, str]]:
    """Image and caption of each record."""
    ...


class Take:
  """The first `count` examples of a source."""

  def __init__(self, source: ExampleSource, count: int):
    if count < 0:
      raise ValueError(f"limit is {count}; give the number of examples, 0 for all")
    self.source, self.count = source, min(count, len(source))

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Example:
    return self.source[index]

  def origin(self, index: int) -> tuple[str, int]:
    return self.source.origin(index)


def open_listed(
  origin: tuple[str, int], read: Callable[[Listed], Opened], listed: Listed
) -> Opened:
  """Returns `read(listed)`; an UnreadableImage becomes a BadRecordError with the file and line of `origin`."""
  try:
    return read(listed)
  except UnreadableImage as error:
    raise BadRecordError(BadRecord(*origin, str(error))) from error


def read_boxes(file: epath.PathLike) -> dict[str, dict[str, Box]]:
  """Returns the named boxes of each image from the file that `spatial-vlm scenes` writes with the records.

  A program writes this file. One broken line makes all of it suspect: ValueError with file and line.
  """
  found = {}
  for number, line in enumerate(epath.Path(file).read_bytes().splitlines(), start=1):
    try:
      entry = parse_json(line)
      found[entry["image"]] = named_boxes(entry["boxes"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f"{os.fspath(file)}:{number}: no image with named boxes ({short_line(repr(error))}); write the file again"
      ) from error
  return found


def named_boxes(value: Any) -> dict[str, Box]:
  """Returns the boxes of a JSON object; raises ValueError, TypeError or AttributeError for anything else."""
  return {name: _box(box) for name, box in value.items()}


def _box(value: Any) -> Box:
  x1, y1, x2, y2 = value
  if not (0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000):
    raise ValueError(f"{value} is not a box x1 < x2, y1 < y2 in 0–1000")
  return x1, y1, x2, y2


def read_lines(
  jsonl: epath.PathLike,
  images: ImageFiles | None,
  parse: Callable[[bytes], Any],
  max_bad_share: float,
) -> tuple[list[tuple[int, Any]], list[BadRecord]]:
  """Returns (line number, parsed line) of every usable line, and the bad ones.

  Args:
    jsonl: file with one JSON object a line.
    images: where the `image` of each line must exist; None: images are not looked up.
    parse: parser of a line; raises ValueError with the reason for a bad one.
    max_bad_share: share of the lines that may be bad.

  Raises:
    NoImageFound: none of the images is there.
    TooManyBadRecords: more lines are bad.
    ValueError: the file holds no record.
  """
  if not 0 <= max_bad_share <= 1:
    raise ValueError(f"max_bad_share is {max_bad_share}; it is a share, from 0 to 1")
  good: list[tuple[int, Any]] = []
  bad: list[BadRecord] = []
  missing: list[BadRecord] = []
  for number, line in enumerate(epath.Path(jsonl).read_bytes().split(b"\n"), start=1):
    if not line.strip():
      continue
    try:
      record = parse(line)
      if images is not None:
        images.find(record.image)
      good.append((number, record))
    except UnusableArchive:
      raise  # the archive is at fault, not the record
    except MissingImage as error:
      missing.append(BadRecord(os.fspath(jsonl), number, str(error)))
      bad.append(missing[-1])
    except ValueError as error:
      bad.append(BadRecord(os.fspath(jsonl), number, str(error)))
      _log.warning("skipped %s", bad[-1])
  report_missing(missing, found=len(good))
  total = len(good) + len(bad)
  if not total:
    raise ValueError(f"{os.fspath(jsonl)} holds no record; give a file with one JSON object a line")
  if len(bad) > max_bad_share * total:
    raise TooManyBadRecords(bad, total, max_bad_share)
  return good, bad


def parse(line: bytes) -> Record:
  """Returns the record of one line; the ValueError that it raises (JSON and encoding errors too) gives the reason."""
  return from_fields(parse_json(line))


def from_fields(fields: Any) -> Record:
  """Returns the record of one JSON object; the ValueError that it raises gives the reason."""
  if not isinstance(fields, dict):
    raise ValueError(f"a record is a JSON object, got {type(fields).__name__}")
  if unknown := sorted(set(fields) - set(_FIELDS)):
    raise ValueError(f"unknown fields {unknown}; known are {list(_FIELDS)}")
  if missing := [name for name in _FIELDS if name not in fields and name not in _OPTIONAL]:
    raise ValueError(f"missing fields {missing}")
  for name in _TEXT_FIELDS:
    if not isinstance(fields[name], str):
      raise ValueError(f"{name} is {fields[name]!r}; it must be text")
  # bool is a subclass of int, and 1.0 == 1: both are errors in the file.
  if type(fields["label"]) is not int or fields["label"] not in (0, 1):
    raise ValueError(f"label is {fields['label']!r}; allowed are 0 and 1")
  if type(fields["annotator_id"]) is not int:
    raise ValueError(f"annotator_id is {fields['annotator_id']!r}; it must be a whole number")
  votes = {name: json.dumps(_votes(name, fields[name])) for name in _VOTE_FIELDS}
  optional = {name: _optional(name, fields.get(name)) for name in _OPTIONAL}
  return Record(**{**fields, **votes, **optional})


def _optional(name: str, value: Any) -> Any:
  """Returns the value, or None for null and NaN."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  expected = (int, float) if name == "reference_frame" else (str,)
  if type(value) not in expected or value in (math.inf, -math.inf):
    raise ValueError(f"{name} is {value!r}; it must be {expected[-1].__name__} or null")
  return value


def _votes(name: str, value: Any) -> list[int]:
  """Returns validators' numbers; they are a JSON string in VSR's splits, a list in its raw file."""
  votes = parse_json(value.encode()) if isinstance(value, str) else value
  if not isinstance(votes, list) or any(type(vote) is not int for vote in votes):
    raise ValueError(f"{name} is {value!r}; it must be a list of whole numbers")
  return votes
