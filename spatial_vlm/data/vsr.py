"""Reads VSR's two published splits, as its repository or Hugging Face distributes them.

  FOLDER/train.jsonl dev.jsonl test.jsonl      the repository's splits/random and splits/zeroshot, or a dataset folder
  FOLDER/data/train-00000-of-00001.parquet     Parquet, where `dev` may be called `validation`
  FOLDER/default/train/0000.parquet

Source: Liu, Emerson and Collier, arXiv 2205.00363; github.com/cambridgeltl/visual-spatial-reasoning.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm import extras
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import BadRecord, Record, from_fields, parse, read_lines


class Counts(NamedTuple):
  """Sizes of a split."""

  records: int
  images: int
  relations: int

  @classmethod
  def of(cls, records: Sequence[Record]) -> "Counts":
    return cls(len(records), len({r.image for r in records}), len({r.relation for r in records}))


PUBLISHED = {
  "random": {
    "train": Counts(7680, 4968, 64),
    "dev": Counts(1097, 1017, 60),
    "test": Counts(2195, 1874, 61),
  },
  "zeroshot": {
    "train": Counts(3489, 2249, 60),
    "dev": Counts(340, 227, 40),
    "test": Counts(1222, 715, 53),
  },
}
"""Counted in the repository's files at commit b27a0af; the zero-shot figures in its README are older."""

_ALSO_CALLED = {"dev": "validation", "validation": "dev"}
_PATTERNS = (
  *("{}.jsonl", "{}.parquet", "{}-*.parquet", "{}/*.parquet"),
  *("data/{}.parquet", "data/{}-*.parquet", "default/{}/*.parquet"),
)


class Listed(NamedTuple):
  """A record with its file, and its line or row counted from 1."""

  file: str
  line: int
  record: Record


class Split(NamedTuple):
  """Contents of a split's files; images are not looked up."""

  listed: list[Listed]
  bad: list[BadRecord]

  @property
  def records(self) -> list[Record]:
    return [entry.record for entry in self.listed]


def split_files(folder: epath.PathLike, split: str) -> list[epath.Path]:
  """Returns the files of a split; the UsageError that it raises if there are none lists the expected names."""
  if not epath.Path(folder).is_dir():
    raise UsageError(
      f"the folder {os.fspath(folder)} does not exist; give one with records, or make some with `spatial-vlm scenes`"
    )
  names = [split, *filter(None, [_ALSO_CALLED.get(split)])]
  patterns = [pattern.format(name) for name in names for pattern in _PATTERNS]
  for pattern in patterns:
    if files := sorted(epath.Path(folder).glob(pattern)):
      return files
  raise UsageError(
    f"{os.fspath(folder)} holds no split {split!r}: none of {', '.join(patterns)} exists; "
    "name the existing splits in data.splits"
  )


def read_split(folder: epath.PathLike, split: str) -> Split:
  """Reads the files of a split; bad records are listed with file and line, and skipped."""
  return read_files(split_files(folder, split))


def read_files(files: Sequence[epath.Path]) -> Split:
  """Reads JSONL and Parquet files of records as one split; ValueError if they hold no record."""
  split = Split([], [])
  for file in files:
    if file.suffix == ".parquet":
      _read_parquet(file, split)
    else:
      numbered, bad = read_lines(file, None, parse, max_bad_share=1.0)
      split.listed.extend(Listed(os.fspath(file), line, record) for line, record in numbered)
      split.bad.extend(bad)
  if not split.listed and not split.bad:
    raise UsageError(f"there is no record in {', '.join(map(os.fspath, files))}")
  return split


def check_published_sizes(
  name: str, splits: Mapping[str, Sequence[Record]], allow_subset: bool = False
) -> None:
  """Raises UsageError unless the splits have the published sizes.

  Args:
    name: of VSR's published split.
    splits: records by name of the split.
    allow_subset: accept splits with fewer records, images and relations.
  """
  if name not in PUBLISHED:
    raise UsageError(f"VSR has no published split {name!r}, only {', '.join(PUBLISHED)}")
  deviations = []
  for split, records in splits.items():
    if split not in PUBLISHED[name]:
      raise UsageError(f"VSR has no split {split!r}, only {', '.join(PUBLISHED[name])}")
    expected, found = PUBLISHED[name][split], Counts.of(records)
    few = allow_subset and all(f <= e for f, e in zip(found, expected, strict=True))
    if found != expected and not few:
      deviations.append(f"\n  {split}: {_sizes_text(found)}; published are {_sizes_text(expected)}")
  if deviations:
    raise UsageError(
      f"this is not VSR's {name} split as it was published:{''.join(deviations)}\nDownload the files again"
      + ("" if allow_subset else ", or set allow_subset to use a part of them")
    )


def _sizes_text(counts: Counts) -> str:
  return f"{counts.records} records, {counts.images} images, {counts.relations} relations"


def _read_parquet(file: epath.Path, split: Split) -> None:
  for row, fields in enumerate(_rows(file), start=1):
    try:
      split.listed.append(Listed(os.fspath(file), row, from_fields(fields)))
    except ValueError as error:
      split.bad.append(BadRecord(os.fspath(file), row, str(error)))


def _rows(file: epath.Path) -> Iterator[dict[str, Any]]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UsageError(extras.need("parquet", f"reading {os.fspath(file)}")) from error
  try:
    with file.open("rb") as opened:
      for batch in pyarrow.parquet.ParquetFile(opened).iter_batches():
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise UsageError(
      f"{os.fspath(file)} cannot be read as Parquet ({error}); copy it again"
    ) from error
