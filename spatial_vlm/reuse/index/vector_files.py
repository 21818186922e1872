"""Files of a vector index: segments of changes, and one manifest per save that lists the segments to read.

  vectors-00007.safetensors   vectors that save 7 added or replaced, and the ids that it removed
  index-00007.json            manifest of save 7: names and hashes of its segments, and attributes of the caller

A file is written once, under a new number, and a manifest after its segments. A save that was interrupted leaves no
manifest or one that is not JSON: the save before it is then read. This needs neither renaming nor appending, so that a
folder may be a local path or gs://. One process may write to a folder.
"""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath

from spatial_vlm.jsonl import parse_json

VERSION = 1
_MANIFEST, _SEGMENT = "index-{:05d}.json", "vectors-{:05d}.safetensors"
_NUMBERED = re.compile(r"(index|vectors)-(\d{5,})\.(json|safetensors)")
_FIELDS = {"version": int, "width": int, "segments": list, "attributes": dict, "sha256": str}


class IndexFileError(ValueError):
  """Raised for a folder without a readable index; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Saved:
  """One save, as its manifest describes it."""

  number: int
  width: int
  segments: tuple[tuple[str, str], ...]
  """File name and SHA-256 of each segment, in the order in which they apply."""
  attributes: Mapping[str, Any]
  """JSON values of the caller."""


@dataclasses.dataclass(frozen=True)
class Changes:
  """What a segment does to the vectors of the segments before it."""

  upserted: Mapping[str, np.ndarray]
  deleted: Sequence[str] = ()


def newest(folder: epath.Path) -> Saved | None:
  """Returns the newest complete save, or None where nothing was saved.

  Raises IndexFileError if no manifest is complete, or the newest complete one was changed.
  """
  numbers = sorted((n for n, path in _files(folder) if path.suffix == ".json"), reverse=True)
  for number in numbers:
    path = folder / _MANIFEST.format(number)
    try:
      manifest = parse_json(path.read_bytes())
    except ValueError:  # not JSON, or not UTF-8
      logging.warning("%s is incomplete: its save was interrupted; reading the save before", path)
      continue
    return _checked(manifest, number, path)
  if numbers:
    raise IndexFileError(f"{folder}: no index-*.json in it is complete; save the index again")
  return None


def read(folder: epath.Path, saved: Saved) -> dict[str, np.ndarray]:
  """Returns id → vector after all segments; raises IndexFileError for a segment that is missing or was changed."""
  vectors: dict[str, np.ndarray] = {}
  for name, sha256 in saved.segments:
    arrays = safetensors.numpy.load(_read_segment(folder / name, sha256))
    for id in json.loads(arrays["deleted"].tobytes()):
      vectors.pop(id, None)  # one that was added after the save before is in no segment
    vectors.update(zip(json.loads(arrays["upserted"].tobytes()), arrays["vectors"], strict=True))
  return vectors


def write(
  folder: epath.Path,
  base: Saved | None,
  changes: Changes,
  width: int,
  attributes: Mapping[str, Any],
) -> Saved:
  """Saves `changes` to the vectors of the save `base` (all vectors where it is None), and returns the new save.

  Nothing is written if the newest save in the folder has the same content. Only the new save and the one before it
  are kept: a reader that has read the earlier manifest still finds its segments.
  """
  folder.mkdir(parents=True, exist_ok=True)
  attributes = json.loads(json.dumps(dict(attributes)))
  number = max((n for n, _ in _files(folder)), default=-1) + 1
  segments = base.segments if base else ()
  content = b""
  if changes.upserted or changes.deleted or not base:
    content = _segment(changes, width)
    segments = (*segments, (_SEGMENT.format(number), hashlib.sha256(content).hexdigest()))
  saved = Saved(number, width, segments, attributes)
  before = newest_readable(folder)
  if before and _content(before) == _content(saved) and _is_whole(folder, before):
    return before
  if content:
    (folder / _SEGMENT.format(number)).write_bytes(content)
  manifest = {
    "version": VERSION,
    "width": width,
    "segments": [{"file": name, "sha256": sha256} for name, sha256 in segments],
    "attributes": attributes,
  }
  manifest["sha256"] = _digest(manifest)
  (folder / _MANIFEST.format(number)).write_bytes(f"{json.dumps(manifest, indent=1)}\n".encode())
  _remove_old(folder, *filter(None, (saved, before)))
  return saved


def newest_readable(folder: epath.Path) -> Saved | None:
  """Returns the newest save; None where it is damaged, so that saving repairs a folder."""
  try:
    return newest(folder)
  except IndexFileError:
    return None


def _is_whole(folder: epath.Path, saved: Saved) -> bool:
  try:
    return all(_read_segment(folder / name, sha256) for name, sha256 in saved.segments)
  except IndexFileError:
    return False


def _read_segment(path: epath.Path, sha256: str) -> bytes:
  try:
    content = path.read_bytes()
  except FileNotFoundError as error:
    raise IndexFileError(f"{path} is missing; restore it, or save the index again") from error
  if hashlib.sha256(content).hexdigest() != sha256:
    raise IndexFileError(
      f"{path} is not the file that was saved; restore it, or save the index again"
    )
  return content


def _content(saved: Saved) -> tuple[Any, ...]:
  return saved.width, [sha256 for _, sha256 in saved.segments], saved.attributes


def _segment(changes: Changes, width: int) -> bytes:
  rows = list(changes.upserted.values())
  arrays = {
    "vectors": np.stack(rows) if rows else np.zeros((0, width), np.float32),
    "upserted": _text(list(changes.upserted)),
    "deleted": _text(list(changes.deleted)),
  }
  return safetensors.numpy.save(arrays)


def _text(ids: list[str]) -> np.ndarray:
  return np.frombuffer(json.dumps(ids).encode(), np.uint8)


def _digest(manifest: Mapping[str, Any]) -> str:
  fields = {name: value for name, value in manifest.items() if name != "sha256"}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _checked(manifest: Any, number: int, path: epath.Path) -> Saved:
  if not isinstance(manifest, dict) or manifest.keys() != _FIELDS.keys():
    raise IndexFileError(f"{path}: expected the fields {sorted(_FIELDS)}; save the index again")
  if manifest["version"] != VERSION:
    raise IndexFileError(
      f"{path}: version is {manifest['version']}, readable is {VERSION}; save the index again"
    )
  if _digest(manifest) != manifest["sha256"]:
    raise IndexFileError(
      f"{path} is not the file that was saved; restore it, or save the index again"
    )
  segments = tuple((segment["file"], segment["sha256"]) for segment in manifest["segments"])
  return Saved(number, manifest["width"], segments, manifest["attributes"])


def _remove_old(folder: epath.Path, *kept: Saved) -> None:
  """Removes all files of the index but those of the saves `kept`."""
  names = {_MANIFEST.format(saved.number) for saved in kept}
  names |= {name for saved in kept for name, _ in saved.segments}
  for _, path in _files(folder):
    if path.name not in names:
      path.unlink(missing_ok=True)


def _files(folder: epath.Path) -> Iterator[tuple[int, epath.Path]]:
  """Yields the files of the index with their numbers."""
  if folder.exists():
    for path in list(folder.iterdir()):
      if match := _NUMBERED.fullmatch(path.name):
        yield int(match[2]), path
