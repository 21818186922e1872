"""Files of a store: ArrayRecord shards, and the manifest that is written when all shards are complete.

  FOLDER/train-00000-of-00008.array_record …
  FOLDER/train.json

An entry is the length of a JSON header (4 bytes, little-endian), the header and an image, encoded as its file was.
"""

import bisect
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

from array_record.python import array_record_data_source
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.remote import is_remote, local_copies
from spatial_vlm.text import short_line

FORMAT = 1
_LENGTH = struct.Struct("<I")


def manifest_path(folder: epath.Path, split: str) -> epath.Path:
  return folder / f"{split}.json"


def shard_path(folder: epath.Path, split: str, number: int, count: int) -> epath.Path:
  return folder / f"{split}-{number:05d}-of-{count:05d}.array_record"


def pack(header: Mapping[str, Any], image: bytes) -> bytes:
  """Returns an entry."""
  encoded = json.dumps(header).encode()
  return _LENGTH.pack(len(encoded)) + encoded + image


class Shards:
  """Random access to the entries of a store; safe for threads, can be pickled.

  The shards of a remote store are copied to this machine once (see `remote.local_copies`). Raises UsageError when the
  store is incomplete.
  """

  def __init__(self, manifest: epath.PathLike):
    path = epath.Path(manifest)
    self.manifest = read_json(path)
    if self.manifest.get("format") != FORMAT or not _is_manifest(self.manifest):
      raise UsageError(
        f"{path.parent} holds no complete store of {path.stem!r}: {path.name} is missing, damaged or of another "
        "version; run `spatial-vlm data` again"
      )
    shards = self.manifest["shards"]
    self._files = [shard_path(path.parent, path.stem, n, len(shards)) for n in range(len(shards))]
    for file, expected in zip(self._files, shards, strict=True):
      if not file.exists() or file.stat().length != expected["bytes"]:
        raise UsageError(
          f"{file} is missing, or its size is not the one in {path.name}; copy it again, or delete {path.name} and run "
          "`spatial-vlm data` again"
        )
    if is_remote(path):
      self._files = local_copies(self._files)
    counts = [len(shard["images"]) for shard in shards]
    self._ends = list(itertools.accumulate(counts))
    parts = [f"{os.fspath(f)}[0:{count}]" for f, count in zip(self._files, counts, strict=True)]
    try:
      self._entries = array_record_data_source.ArrayRecordDataSource(parts)
    except (RuntimeError, ValueError) as error:
      raise UsageError(
        f"the shards of {path} cannot be opened ({short_line(str(error))}); copy them again"
      ) from error

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> tuple[dict[str, Any], bytes]:
    """Returns header and image; ValueError for a damaged entry, IndexError outside the store."""
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    try:
      entry = self._entries[int(index)]
      start = _LENGTH.size + _LENGTH.unpack_from(entry)[0]
      return json.loads(entry[_LENGTH.size : start].decode()), entry[start:]
    except (RuntimeError, ValueError, struct.error) as error:
      raise ValueError(f"damaged entry; copy the shard again ({error})") from error

  @property
  def images(self) -> list[str]:
    """Name of each entry's image."""
    return [name for shard in self.manifest["shards"] for name in shard["images"]]

  def origin(self, index: int) -> tuple[str, int]:
    """Returns the shard, and the position in it counted from 1."""
    number = bisect.bisect_right(self._ends, index)
    before = self._ends[number - 1] if number else 0
    return os.fspath(self._files[number]), index - before + 1


def _is_manifest(value: Mapping[str, Any]) -> bool:
  """Whether a JSON object has the fields of a manifest, of their types."""
  shards, bad = value.get("shards"), value.get("bad")
  return (
    isinstance(shards, list)
    and bool(shards)
    and all(map(_is_shard, shards))
    and isinstance(bad, list)
    and all(isinstance(each, list) and [*map(type, each)] == [str, int, str] for each in bad)
  )


def _is_shard(value: Any) -> bool:
  images = value.get("images") if isinstance(value, dict) else None
  return (
    isinstance(images, list)
    and all(isinstance(name, str) for name in images)
    and type(value.get("bytes")) is int
    and isinstance(value.get("sha256"), str)
  )


def matches(shard: epath.Path, expected: Any) -> bool:
  """Returns whether a shard has the size and checksum that were noted."""
  return (
    _is_shard(expected)
    and shard.exists()
    and shard.stat().length == expected["bytes"]
    and sha256(shard) == expected["sha256"]
  )


def sha256(path: epath.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: epath.Path) -> dict[str, Any]:
  """Returns the JSON object of a file; empty if the file is missing or incomplete."""
  try:
    content = json.loads(path.read_text())
  except (FileNotFoundError, ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}
