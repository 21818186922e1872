"""A compact, shuffled store of examples: ArrayRecord shards, read by grain from any position.

Records are stored in an order drawn once, so that sequential reads are random reads. An entry holds all of an example:
the record, its boxes and the image. Nothing is pickled. The same records, images and settings give the same bytes. An
interrupted run continues with the first incomplete shard.

A store is also a location of images (see `image_files`): `data.images=FOLDER/train.json`.
"""

import dataclasses
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from etils import epath
from jaxtyping import Int

from spatial_vlm.config import UsageError
from spatial_vlm.data import shards
from spatial_vlm.data.records import (
  BadRecord,
  BadRecordError,
  Example,
  JsonlSource,
  TooManyBadRecords,
  from_fields,
  named_boxes,
)
from spatial_vlm.processor.image import UnreadableImage, open_image
from spatial_vlm.remote import is_remote

_OPTIONS = "group_size:1,uncompressed"
"""One record a chunk, for random reads; images are already compressed."""
_JPEG_QUALITY = 95


class Settings(NamedTuple):
  """Settings of a store."""

  shards: int
  seed: int
  """Of the shuffled order."""
  max_pixels: int
  """Larger images are scaled down to at most this many and encoded as JPEG; 0 keeps all images as they are."""

  def check(self) -> None:
    """Raises ValueError for settings out of their range."""
    if not 1 <= self.shards <= 99_999 or self.seed < 0 or self.max_pixels < 0:
      raise ValueError(
        f"the store has shards {self.shards}, seed {self.seed} and max_pixels {self.max_pixels}; give 1 to 99999 "
        "shards, and at least 0 for the others"
      )


def check_folder(folder: epath.PathLike) -> None:
  """Raises UsageError for a remote folder: shards are written on a local disk."""
  if is_remote(folder):
    raise UsageError(
      f"a store is written to a local disk, not to {os.fspath(folder)}; give a local folder and copy it there "
      "afterwards, e.g. by gcloud storage cp -r: other commands read it from gs://"
    )


def write_store(
  folder: epath.PathLike,
  split: str,
  source: JsonlSource,
  settings: Settings,
  advance: Callable[[int], object] = lambda records: None,
) -> "StoreSource":
  """Writes the missing shards of a store and opens it.

  Every image is decoded once: an unreadable one is skipped here, and listed by `StoreSource.bad`, so that training
  does not meet it.

  Args:
    folder: on a local disk; created if it is missing.
    split: first part of the files' names.
    source: of the examples; its `max_bad_share` also applies to unreadable images.
    settings: shards, order and size of the images.
    advance: called with the number of records that were written since the last call.

  Raises:
    TooManyBadRecords: too many images are unreadable.
  """
  settings.check()
  check_folder(folder)
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  writer = _Writer(folder, split, source, settings, _digest(source, settings))
  manifest = shards.manifest_path(folder, split)
  if shards.read_json(manifest).get("digest") != writer.digest or not writer.is_complete():
    manifest.unlink(missing_ok=True)
    manifest.write_text(json.dumps(writer.write(advance), indent=2) + "\n")
  for number in range(settings.shards):
    writer.note(number).unlink(missing_ok=True)
  return StoreSource(folder, split)


class StoreSource:
  """Random-access source of a store's examples in the store's order: the examples of `JsonlSource`, shuffled.

  Raises UsageError when the store is incomplete. `source[i]` raises BadRecordError for a damaged entry.
  """

  def __init__(self, folder: epath.PathLike, split: str):
    self._entries = shards.Shards(shards.manifest_path(epath.Path(folder), split))
    self._images = self._entries.images
    self.bad = [BadRecord(*bad) for bad in self._entries.manifest["bad"]]
    """Records that were skipped when the store was written, because of their images."""

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> Example:
    try:
      header, data = self._entries[index]
      record, boxes = from_fields(header["record"]), named_boxes(header["boxes"])
      image = np.asarray(open_image(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise BadRecordError(BadRecord(*self.origin(index), str(error))) from error
    return Example(record, image, boxes, int(index))

  def __iter__(self) -> Iterator[Example]:
    return (self[index] for index in range(len(self)))

  def origin(self, index: int) -> tuple[str, int]:
    """Returns the shard, and the position in it counted from 1."""
    return self._entries.origin(index)

  def image_name(self, index: int) -> str:
    return self._images[index]


@dataclasses.dataclass(frozen=True)
class _Writer:
  """Writes shards, and a note about each complete shard; the notes are deleted once the manifest is written."""

  folder: epath.Path
  split: str
  source: JsonlSource
  settings: Settings
  digest: str

  def write(self, advance: Callable[[int], object]) -> dict[str, Any]:
    """Writes the missing shards and returns the manifest."""
    notes = []
    order = np.random.default_rng(self.settings.seed).permutation(len(self.source))
    for number, indices in enumerate(np.array_split(order, self.settings.shards)):
      note = shards.read_json(self.note(number))
      if note.get("digest") == self.digest and shards.matches(self.shard(number), note):
        advance(len(indices))
      else:
        note = self._write_shard(number, indices, advance)
      notes.append(note)
      bad = [BadRecord(*bad) for note in notes for bad in note["bad"]]
      if len(bad) > self.source.max_bad_share * len(self.source):
        raise TooManyBadRecords(bad, len(self.source), self.source.max_bad_share)
    return {
      "format": shards.FORMAT,
      "digest": self.digest,
      "settings": self.settings._asdict(),
      "shards": [{name: note[name] for name in ("images", "bytes", "sha256")} for note in notes],
      "bad": [bad for note in notes for bad in note["bad"]],
    }

  def is_complete(self) -> bool:
    """Returns whether every shard has the size and checksum in the manifest."""
    manifest = shards.read_json(shards.manifest_path(self.folder, self.split))
    noted = manifest.get("shards", [])
    return (
      isinstance(noted, list)
      and bool(noted)
      and all(shards.matches(self.shard(n), s) for n, s in enumerate(noted))
    )

  def shard(self, number: int) -> epath.Path:
    return shards.shard_path(self.folder, self.split, number, self.settings.shards)

  def note(self, number: int) -> epath.Path:
    return self.shard(number).with_suffix(".json")

  def _write_shard(
    self, number: int, indices: Int[np.ndarray, "n"], advance: Callable[[int], object]
  ) -> dict[str, Any]:
    self.note(number).unlink(missing_ok=True)
    images, bad = [], []
    file = array_record_module.ArrayRecordWriter(os.fspath(self.shard(number)), _OPTIONS)
    for index in indices:
      try:
        file.write(self._entry(int(index)))
        images.append(self.source.image_name(int(index)))
      except UnreadableImage as error:
        bad.append([*self.source.origin(int(index)), str(error)])
      advance(1)
    file.close()
    note = {
      "digest": self.digest,
      "images": images,
      "bytes": self.shard(number).stat().length,
      "sha256": shards.sha256(self.shard(number)),
      "bad": bad,
    }
    self.note(number).write_text(json.dumps(note))
    return note

  def _entry(self, index: int) -> bytes:
    record, boxes = self.source.describe(index)
    data = self.source.image_files.read(record.image)
    image = self.source.image_files.decode(record.image, data)
    header = {"record": record.to_json(), "boxes": boxes}
    return shards.pack(header, _reduced(image, self.settings.max_pixels) or data)


def _reduced(image: PIL.Image.Image, max_pixels: int) -> bytes | None:
  """Returns a JPEG of at most `max_pixels`; None if the image is not larger."""
  if not max_pixels or image.width * image.height <= max_pixels:
    return None
  scale = math.sqrt(max_pixels / (image.width * image.height))
  size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
  buffer = io.BytesIO()
  image.resize(size, PIL.Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
  return buffer.getvalue()


def _digest(source: JsonlSource, settings: Settings) -> str:
  """Returns a hash of everything that determines the bytes of a store, except the contents of the images."""
  digest = hashlib.sha256(json.dumps([shards.FORMAT, settings]).encode())
  for index in range(len(source)):
    record, boxes = source.describe(index)
    digest.update(json.dumps([record.to_json(), boxes]).encode())
  return digest.hexdigest()
