"""Parquet files as the Hugging Face hub writes them: images as structs of bytes and path, class labels as numbers.

The types of columns (`Image`, lists of it, `ClassLabel`) stand in the file's metadata under `huggingface`; a file
without it is read by its Arrow types. Images of a question come from one column, from a list, or from `image_1`,
`image_2`, …, in the order of their numbers; empty ones are skipped. A split may be several files (shards).
"""

import functools
import json
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm import extras
from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.table import (
  MAX_IMAGE_BYTES,
  MAX_IMAGES,
  Row,
  column_name,
  find_files,
  image_or_name,
  present,
)
from spatial_vlm.data.records import BadRecord
from spatial_vlm.processor.image import UnreadableImage

_IMAGE_COLUMN = re.compile(r"image(_\d+)?")
"""Columns that may hold images as text."""
MAX_GROUP_BYTES = 2**33
"""Largest row group that is read at once; a crafted file of kilobytes may unpack to any size."""


class _Place(NamedTuple):
  """Where a row stands: shard, row group, row in the group."""

  shard: int
  group: int
  row: int


class ParquetTable:
  """Rows of the Parquet files of a path or pattern; raises UsageError for a file that is no Parquet."""

  def __init__(self, pattern: epath.PathLike):
    self._paths = find_files(pattern)
    self.rows: list[Row] = []
    self.bad: list[BadRecord] = []
    self._places: list[_Place] = []
    self._image_columns: list[str] = []
    for shard in range(len(self._paths)):
      self._add_shard(shard)
    self._lock = threading.Lock()
    self._group = functools.lru_cache(maxsize=2)(
      self._read_images
    )  # of a question and of another one

  def images(self, number: int) -> list[bytes | str]:
    """Returns the images of a row, or their names; UnreadableImage where it holds neither."""
    place = self._places[number]
    with self._lock:
      row = self._group(place.shard, place.group)[place.row]
    found = [image for name in self._image_columns for image in _images(row.get(name))]
    if not 0 < len(found) <= MAX_IMAGES:
      raise UnreadableImage(f"the row has {len(found)} images; it must have 1 to {MAX_IMAGES}")
    return found

  def _add_shard(self, shard: int) -> None:
    path = self._paths[shard]
    file = _open(path)
    schema = file.schema_arrow
    features = _features(schema.metadata)
    images = sorted(
      (field.name for field in schema if _holds_images(field, features.get(field.name))),
      key=_natural,
    )
    if self._image_columns and images != self._image_columns:
      raise UsageError(f"{os.fspath(path)} has other image columns than the first shard: {images}")
    self._image_columns = images
    others = [field.name for field in schema if field.name not in images]
    before = len(self.rows)
    for group in range(file.num_row_groups):
      for row, fields in enumerate(_read(path, group, others)):
        named = {
          column_name(name): present(_named(value, features.get(name)))
          for name, value in fields.items()
        }
        self._places.append(_Place(shard, group, row))
        self.rows.append(Row(os.fspath(path), len(self.rows) - before + 1, named))

  def _read_images(self, shard: int, group: int) -> list[dict[str, Any]]:
    return _read(self._paths[shard], group, self._image_columns)


def _open(path: Path) -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UsageError(extras.need("parquet", f"reading {os.fspath(path)}")) from error
  try:
    return pyarrow.parquet.ParquetFile(path)
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise _unusable(path, error) from error


def _read(path: Path, group: int, columns: list[str]) -> list[dict[str, Any]]:
  """Returns some columns of a row group, one dictionary for each row."""
  import pyarrow

  file = _open(path)
  size = file.metadata.row_group(group).total_byte_size
  if size > MAX_GROUP_BYTES:
    raise UsageError(
      f"{os.fspath(path)} has a row group of {size:,} bytes; at most {MAX_GROUP_BYTES:,} are read at once"
    )
  try:
    return file.read_row_group(group, columns=columns).to_pylist()
  except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
    raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> UsageError:
  return UsageError(f"{os.fspath(path)} cannot be read as Parquet ({error}); copy it again")


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
  """Returns the types of the columns as the library `datasets` writes them; {} where the file has none."""
  try:
    found = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
  except (ValueError, KeyError, TypeError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _holds_images(field: Any, feature: Any) -> bool:
  if isinstance(feature, list):  # how older versions of `datasets` write a list
    feature = feature[0] if feature else None
  if isinstance(feature, dict):
    inner = feature.get("feature") if feature.get("_type") in ("List", "Sequence") else feature
    if isinstance(inner, dict):
      return inner.get("_type") == "Image"
  kind = str(field.type)
  if kind in ("string", "large_string"):
    return _IMAGE_COLUMN.fullmatch(field.name) is not None
  return bool(
    re.match(r"((large_)?list<\w+: )?struct<(bytes: (large_)?binary|path: \w+, bytes: )", kind)
  )


def _natural(name: str) -> list[tuple[int, str]]:
  """Returns a key that sorts image_10 after image_2."""
  return [
    (int(part or 0), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)
  ]


def _named(value: Any, feature: Any) -> Any:
  """Returns the name of a class label, which the file holds as a number; −1 is missing. Other values stay."""
  if not isinstance(feature, dict):
    return value
  if feature.get("_type") == "ClassLabel" and isinstance(value, int):
    names = feature.get("names", ())
    return names[value] if 0 <= value < len(names) else None
  if feature.get("_type") in ("List", "Sequence") and isinstance(value, list):
    return [_named(item, feature.get("feature")) for item in value]
  return value


def _images(value: Any) -> list[bytes | str]:
  """Returns the encoded images of a cell, or the names of those that it holds no bytes of."""
  if not value:
    return []
  if isinstance(value, str):
    return [image_or_name(value)]
  if isinstance(value, list):
    return [image for item in value for image in _images(item)]
  data, path = value.get("bytes"), value.get("path")
  if data is None:
    return [path] if path else []
  if len(data) > MAX_IMAGE_BYTES:
    raise UnreadableImage(f"an image of {len(data):,} bytes; at most {MAX_IMAGE_BYTES:,} are read")
  return [data]
