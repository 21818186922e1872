"""VSR's two published splits, as they come from its repository or from Hugging Face.

  FOLDER/train.jsonl dev.jsonl test.jsonl      the repository's splits/random and splits/zeroshot, or a dataset folder
  FOLDER/data/train-00000-of-00001.parquet     Parquet, where `dev` may be called `validation`
  FOLDER/default/train/0000.parquet

Source: Liu, Emerson and Collier, arXiv 2205.00363; github.com/cambridgeltl/visual-spatial-reasoning.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

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
"""Counted in the repository's files at commit b27a0af; other zero-shot figures in its README are older."""

_ALSO_CALLED = {"dev": "validation", "validation": "dev"}
_PLACES = (
  *("{}.jsonl", "{}.parquet", "{}-*.parquet", "{}/*.parquet"),
  *("data/{}.parquet", "data/{}-*.parquet", "default/{}/*.parquet"),
)


class Listed(NamedTuple):
  """A record and where it stands: its file, and its line or row, counted from 1."""

  file: str
  line: int
  record: Record


class Split(NamedTuple):
  """What a split's files hold; pictures are not looked up."""

  listed: list[Listed]
  bad: list[BadRecord]

  @property
  def records(self) -> list[Record]:
    return [entry.record for entry in self.listed]


def split_files(folder: epath.PathLike, split: str) -> list[epath.Path]:
  """The files of a split; UsageError with the names that were looked for when there are none."""
  if not epath.Path(folder).is_dir():
    raise UsageError(
      f"the folder {os.fspath(folder)} does not exist; give one with records, or make some by `spatial-vlm scenes`"
    )
  names = [split, *filter(None, [_ALSO_CALLED.get(split)])]
  patterns = [place.format(name) for name in names for place in _PLACES]
  for pattern in patterns:
    if files := sorted(epath.Path(folder).glob(pattern)):
      return files
  raise UsageError(
    f"{os.fspath(folder)} holds no split {split!r}: there is none of {', '.join(patterns)}; "
    "name those splits that there are in data.splits"
  )


def read_split(folder: epath.PathLike, split: str) -> Split:
  """Reads the files of a split; records that cannot be used are listed with file and line, and left out."""
  return read_files(split_files(folder, split))


def read_files(files: Sequence[epath.Path]) -> Split:
  """Reads JSONL and Parquet files of records as one split. Raises ValueError for what is neither, or holds nothing."""
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
  """Raises UsageError unless each split has the sizes that VSR's split `name` was published with.

  With `allow_subset` it may have less of everything, but not more.
  """
  if name not in PUBLISHED:
    raise UsageError(f"there is no published split {name!r} of VSR, only {', '.join(PUBLISHED)}")
  deviations = []
  for split, records in splits.items():
    if split not in PUBLISHED[name]:
      raise UsageError(f"VSR has no split {split!r}, only {', '.join(PUBLISHED[name])}")
    expected, found = PUBLISHED[name][split], Counts.of(records)
    few = allow_subset and all(f <= e for f, e in zip(found, expected, strict=True))
    if found != expected and not few:
      deviations.append(f"\n  {split}: {_words(found)}; published are {_words(expected)}")
  if deviations:
    raise UsageError(
      f"this is not VSR's {name} split as it was published:{''.join(deviations)}\nGet the files anew"
      + ("" if allow_subset else ", or set allow_subset to work on a part of them")
    )


def _words(counts: Counts) -> str:
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
    raise UsageError(
      f"{os.fspath(file)} is read by pyarrow: pip install 'spatial-vlm[parquet]'"
    ) from error
  try:
    with file.open("rb") as opened:
      for batch in pyarrow.parquet.ParquetFile(opened).iter_batches():
        yield from batch.to_pylist()
  except (pyarrow.ArrowException, OSError) as error:
    raise UsageError(
      f"{os.fspath(file)} cannot be read as Parquet ({error}); copy it anew"
    ) from error
