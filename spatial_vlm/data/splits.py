"""Splits of records: read, matched with their images, compared with an evaluation set and written."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data import vsr
from spatial_vlm.data.image_files import ImageFiles
from spatial_vlm.data.image_locations import MissingImage
from spatial_vlm.data.records import BadRecord, Record, TooManyBadRecords, report_missing
from spatial_vlm.data.split_guard import Pair, shared_pairs
from spatial_vlm.data.split_report import SHOWN
from spatial_vlm.data.statistics import describe
from spatial_vlm.progress import track
from spatial_vlm.remote import write_whole


@dataclasses.dataclass(frozen=True)
class Split:
  """The usable records of a split, and the others."""

  records: list[Record]
  bad: list[BadRecord]
  """All records that cannot be used."""
  missing: list[str]
  """Names of images that were not found."""

  @property
  def pairs(self) -> list[Pair]:
    """Image and caption of each record."""
    return [(record.image, record.caption) for record in self.records]

  def describe(self) -> dict[str, Any]:
    """Returns the statistics of the records, the skipped records and the missing images, as plain JSON."""
    missing = {"count": len(self.missing), "first": self.missing[:SHOWN]}
    bad = [dataclasses.asdict(bad) for bad in self.bad]
    return {**describe(self.records), "skipped": bad, "missing_images": missing}

  def check(self, max_bad_share: float) -> None:
    """Raises TooManyBadRecords if more than this share of the records is bad, or all of them."""
    total = len(self.records) + len(self.bad)
    if len(self.bad) > max_bad_share * total or not self.records:
      raise TooManyBadRecords(self.bad, total, max_bad_share)

  def without(self, evaluation: Sequence[Pair]) -> "Split":
    """Returns the split without records of an evaluation set; UsageError if nothing remains."""
    shared = set(shared_pairs(evaluation, self.pairs))
    pairs = zip(self.records, self.pairs, strict=True)
    if not (records := [record for record, pair in pairs if pair not in shared]):
      raise UsageError("all training records are in the evaluation set; give another one")
    return dataclasses.replace(self, records=records)


@dataclasses.dataclass(frozen=True)
class Overlap:
  """The part of an evaluation set that is also in the training set."""

  name: str
  """Of the evaluation set, as messages call it."""
  pairs: Sequence[Pair]
  """All pairs of the evaluation set."""
  shared: Sequence[Pair]

  def describe(self, dropped: bool) -> dict[str, Any]:
    """Returns the overlap as plain JSON.

    Args:
      dropped: whether the shared records are removed from the training set.
    """
    return {
      "evaluation": self.name,
      "pairs": len(self.pairs),
      "shared": len(self.shared),
      "first": self.shared[:SHOWN],
      "dropped": dropped,
    }


def read_splits(
  folder: str, names: Sequence[str], images: str, published: str, allow_subset: bool
) -> dict[str, Split]:
  """Reads splits and looks up their images.

  Args:
    folder: of the files of all splits.
    names: of the splits.
    images: locations of the images; empty: images are not looked up.
    published: name of the published split of VSR whose sizes the files must have; empty: any sizes.
    allow_subset: accept fewer records than were published.

  Raises:
    UsageError: files are missing or do not have the published sizes.
  """
  read = {name: vsr.read_split(folder, name) for name in names}
  if published:
    records = {name: split.records for name, split in read.items()}
    vsr.check_published_sizes(published, records, allow_subset)
  files = ImageFiles(images) if images else None
  return {name: _with_images(name, split, files) for name, split in read.items()}


def _with_images(name: str, split: vsr.Split, images: ImageFiles | None) -> Split:
  """Looks up the image of each record without opening it."""
  if images is None:
    return Split(split.records, split.bad, [])
  records, missing, names = [], [], {}
  for file, line, record in track(split.listed, f"{name} images", len(split.listed)):
    try:
      images.find(record.image)
      records.append(record)
    except MissingImage as error:
      missing.append(BadRecord(file, line, str(error)))
      names[record.image] = None
  report_missing(missing, len(records))
  return Split(records, [*split.bad, *missing], list(names))


def write_records(splits: Mapping[str, Split], folder: epath.Path) -> None:
  """Writes the records of each split to FOLDER/SPLIT.jsonl."""
  for name, split in splits.items():
    lines = (json.dumps(record.to_json()) + "\n" for record in split.records)
    write_whole(folder / f"{name}.jsonl", "".join(lines))
