"""One place of pictures each: a folder, a tar, a zip, a store.

Only ordinary files count. Links, devices, absolute paths and paths with ".." are never followed.
"""

import dataclasses
import functools
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.shards import Shards
from spatial_vlm.processor.image import UnreadableImage

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_BYTES = 1 << 28
"""Of one picture that a zip unfolds: a few kilobytes can be made to swell to any size."""


class UnusableArchive(UsageError):
  """An archive as a whole cannot be read: damaged, cut off or compressed."""


class MissingImage(UnreadableImage):
  """No picture is meant by the name, or more than one, or one outside the places."""


class ImageLocation(Protocol):
  def find(self, name: str) -> str | None:
    """Path inside the place of the picture that is meant; MissingImage when that is not clear or not allowed."""
    ...

  def read(self, member: str) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class _Folder:
  path: epath.Path

  def __str__(self) -> str:
    return os.fspath(self.path)

  def find(self, name: str) -> str | None:
    if self._holds(name):
      return name
    others = [f"{folder}/{name}" for folder in self._subfolders]
    while "/" in name:
      name = name.partition("/")[2]
      others.append(name)
    return _only(name, [other for other in others if self._holds(other)])

  def read(self, member: str) -> bytes:
    try:
      return (self.path / member).read_bytes()
    except OSError as error:
      raise UnreadableImage(error.strerror or str(error)) from error

  def _holds(self, name: str) -> bool:
    """Raises MissingImage for what lies outside, symbolic links resolved."""
    path = self.path / name
    if self._is_local and not _inside(os.path.realpath(path), self._real_path):
      raise MissingImage(f"image {name!r} leaves the image folder through a link")
    return path.exists() and not path.is_dir()

  @property
  def _is_local(self) -> bool:
    return "://" not in str(self)

  @functools.cached_property
  def _real_path(self) -> str:
    return os.path.realpath(self.path)

  @functools.cached_property
  def _subfolders(self) -> tuple[str, ...]:
    """None elsewhere: to ask a bucket for each of 100,000 entries whether it is a folder takes hours."""
    if not (self._is_local and self.path.is_dir()):
      return ()
    with os.scandir(self.path) as entries:
      return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


class _Member(NamedTuple):
  offset: int
  """Of the bytes (tar), or of the header before them (zip)."""
  size: int
  """Bytes of the picture."""
  packed_size: int
  """Bytes in the archive."""
  method: int
  """Of zip's compression."""
  crc: int


@dataclasses.dataclass(frozen=True)
class _Listed:
  """A place whose members are known."""

  path: str

  def __str__(self) -> str:
    return self.path

  def find(self, name: str) -> str | None:
    if name in self._members:
      return name
    others = self._by_base.get(posixpath.basename(name), ())
    return _only(name, [m for m in others if m.endswith(f"/{name}") or name.endswith(f"/{m}")])

  @property
  def _members(self) -> Mapping[str, Any]:
    raise NotImplementedError

  @functools.cached_property
  def _by_base(self) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in self._members:
      found.setdefault(posixpath.basename(name), []).append(name)
    return found


class _Store(_Listed):
  """Entries of ArrayRecord shards; of several with one picture, the first."""

  @functools.cached_property
  def _entries(self) -> Shards:
    try:
      return Shards(self.path)
    except UsageError as error:
      raise UnusableArchive(str(error)) from error

  @functools.cached_property
  def _members(self) -> dict[str, int]:
    names = self._entries.images
    return {name: number for number, name in reversed([*enumerate(names)])}

  def read(self, member: str) -> bytes:
    try:
      return self._entries[self._members[member]][1]
    except ValueError as error:
      raise UnreadableImage(str(error)) from error


class _Archive(_Listed):
  """The file is opened for each read: that costs little beside decoding, and threads and forks share no position."""

  @functools.cached_property
  def _members(self) -> dict[str, _Member]:
    """Ordinary files by path; of one path that stands there twice the last counts, as for tar and unzip."""
    try:
      return {name: member for path, member in self._index() if (name := _plain(path))}
    except (OSError, tarfile.TarError, zipfile.BadZipFile, struct.error, UnicodeError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UnusableArchive(
        f"{self} cannot be read ({reason}); it may be cut off or damaged: copy it anew"
      ) from error

  def _index(self) -> Iterable[tuple[str, _Member]]:
    raise NotImplementedError

  def _bytes_at(self, offset: int, size: int) -> bytes:
    try:
      with open(self.path, "rb", buffering=0) as file:
        if offset + size > os.fstat(file.fileno()).st_size:
          raise UnreadableImage("the archive ends within it; copy it anew")
        return os.pread(file.fileno(), size, offset)
    except OSError as error:
      raise UnreadableImage(error.strerror or str(error)) from error


class _Tar(_Archive):
  """An uncompressed tar: its headers are read once, its pictures where they stand."""

  def read(self, member: str) -> bytes:
    offset, size, *_ = self._members[member]
    return self._bytes_at(offset, size)

  def _index(self) -> Iterator[tuple[str, _Member]]:
    with open(self.path, "rb") as file:
      start = file.read(6)
      if packing := next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), ""):
        raise UnusableArchive(
          f"{self} is a tar compressed by {packing}, in which no picture can be found without reading all before it;"
          " unpack it to a folder or a plain .tar, or make a .zip"
        )
      file.seek(0)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
          tar.members.clear()  # it would keep every header
          if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield member.name, _Member(member.offset_data, member.size, member.size, 0, 0)
        file.seek(tar.offset)
        # tarfile takes a damaged header for the end; a whole archive ends in blocks of zeros.
        if (end := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
          raise tarfile.ReadError(
            f"damaged header at byte {tar.offset}" if end else "its end is missing"
          )


class _Zip(_Archive):
  """A zip: its central directory is read once."""

  def read(self, member: str) -> bytes:
    offset, size, packed_size, method, crc = self._members[member]
    if size > _MAX_BYTES:
      raise UnreadableImage(f"{size} bytes are more than a picture has ({_MAX_BYTES} at most)")
    header = self._bytes_at(offset, zipfile.sizeFileHeader)
    if not header.startswith(zipfile.stringFileHeader):
      raise UnreadableImage(f"the archive is damaged at byte {offset}; copy it anew")
    name_length, extra_length = struct.unpack("<HH", header[-4:])
    data = self._bytes_at(offset + len(header) + name_length + extra_length, packed_size)
    if method == zipfile.ZIP_DEFLATED:
      try:
        data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
      except zlib.error as error:
        raise UnreadableImage(f"it is damaged in the archive: {error}") from error
    elif method != zipfile.ZIP_STORED:
      raise UnreadableImage(
        f"it is encrypted or compressed by method {method}; make a zip that stores or deflates"
      )
    if len(data) != size or zlib.crc32(data) != crc:
      raise UnreadableImage("it is damaged in the archive: its checksum is wrong")
    return data

  def _index(self) -> Iterator[tuple[str, _Member]]:
    with zipfile.ZipFile(self.path) as archive:
      for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not info.is_dir() and kind in (0, stat.S_IFREG):
          method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
          member = _Member(info.header_offset, info.file_size, info.compress_size, method, info.CRC)
          yield info.filename, member


_ENCRYPTED = -1


def open_location(place: epath.PathLike) -> ImageLocation:
  """What lies at a path, by its suffix; UsageError for what is none of them."""
  path = epath.Path(place)
  name = os.fspath(path)
  kinds = {".zip": _Zip, ".json": _Store} | dict.fromkeys(_TAR_SUFFIXES, _Tar)
  kind = next((kind for suffix, kind in kinds.items() if name.lower().endswith(suffix)), None)
  if path.is_dir() or (kind is None and not path.exists()):
    return _Folder(path)
  if kind is None:
    raise UsageError(
      f"pictures are in {name}, but that is no folder, .tar, .zip or .json of a store"
    )
  if "://" in name:
    raise UsageError(f"{name} is an archive elsewhere; copy it to a local disk")
  return kind(name)


def _plain(path: str) -> str | None:
  """The path of a member as names are written; None for one that would leave the archive's folder."""
  parts = [part for part in path.split("/") if part not in ("", ".")]
  unsafe = path.startswith("/") or ".." in parts or "\\" in path or not parts
  return None if unsafe else "/".join(parts)


def _only(name: str, found: Sequence[str]) -> str | None:
  if len(found) > 1:
    raise MissingImage(
      f"image {name!r} may be {' or '.join(map(repr, found))}; name it with its folder"
    )
  return found[0] if found else None


def _inside(path: str, folder: str) -> bool:
  return os.path.commonpath((path, folder)) == folder
