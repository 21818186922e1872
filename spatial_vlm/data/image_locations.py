"""Locations of images, read by name: a folder, a tar, a zip, a store.

Only regular files are read. Links, devices, absolute paths and paths with ".." are never followed.
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

_ZIP_HEADER_START, _ZIP_HEADER_BYTES = b"PK\x03\x04", 30
"""Of the local header of a file in a zip (APPNOTE 4.3.7)."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAX_BYTES = 1 << 28
"""Most bytes of one image in a zip: a few crafted kilobytes can decompress to any size."""


class UnusableArchive(UsageError):
  """An archive that cannot be read as a whole: it is damaged, incomplete or compressed."""


class MissingImage(UnreadableImage):
  """A name that matches no image, or several, or a file outside the location."""


class ImageLocation(Protocol):
  """A folder or an archive that holds images."""

  def find(self, name: str) -> str | None:
    """Returns the path of an image inside the location; MissingImage if it is ambiguous or not allowed."""
    ...

  def read(self, member: str) -> bytes:
    """Returns the bytes of the file at a path that `find` returned."""
    ...


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
    """Returns whether the file exists; MissingImage if it is outside the folder, symbolic links resolved."""
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
    """Names of subfolders; none for a remote folder, where a request for each of 100,000 entries takes hours."""
    if not (self._is_local and self.path.is_dir()):
      return ()
    with os.scandir(self.path) as entries:
      return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


class _Member(NamedTuple):
  """An image in a tar or zip."""

  offset: int
  """Of the image's bytes (tar), or of the header before them (zip)."""
  size: int
  """Bytes of the image."""
  packed_size: int
  """Bytes in the archive."""
  method: int
  """Compression method of zip."""
  crc: int


@dataclasses.dataclass(frozen=True)
class _Listed:
  """A location with a list of its members."""

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
  """Entries of ArrayRecord shards; of several entries with one image, the first."""

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
  """A file with members.

  It is opened for each read: that is cheap compared with decoding, and threads and forks share no file position.
  """

  @functools.cached_property
  def _members(self) -> dict[str, _Member]:
    """Regular files by path; of two entries with one path the last counts, as for tar and unzip."""
    try:
      return {name: member for path, member in self._index() if (name := _plain(path))}
    except (OSError, tarfile.TarError, zipfile.BadZipFile, struct.error, UnicodeError) as error:
      reason = getattr(error, "strerror", None) or error
      raise UnusableArchive(
        f"{self} cannot be read ({reason}); it may be incomplete or damaged: copy it again"
      ) from error

  def _index(self) -> Iterable[tuple[str, _Member]]:
    raise NotImplementedError

  def _bytes_at(self, offset: int, size: int) -> bytes:
    try:
      with open(self.path, "rb", buffering=0) as file:
        if offset + size > os.fstat(file.fileno()).st_size:
          raise UnreadableImage("the archive ends within it; copy it again")
        return os.pread(file.fileno(), size, offset)
    except OSError as error:
      raise UnreadableImage(error.strerror or str(error)) from error


class _Tar(_Archive):
  """An uncompressed tar: the headers are read once, the images at their offsets."""

  def read(self, member: str) -> bytes:
    offset, size, *_ = self._members[member]
    return self._bytes_at(offset, size)

  def _index(self) -> Iterator[tuple[str, _Member]]:
    with open(self.path, "rb") as file:
      start = file.read(6)
      if packing := next((kind for magic, kind in _PACKED.items() if start.startswith(magic)), ""):
        raise UnusableArchive(
          f"{self} is a tar compressed by {packing}, in which finding an image means reading everything before it;"
          " unpack it to a folder or a plain .tar, or make a .zip"
        )
      file.seek(0)
      with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
          tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # tarfile keeps every header otherwise
          if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield member.name, _Member(member.offset_data, member.size, member.size, 0, 0)
        file.seek(tar.offset)
        # tarfile treats a damaged header as the end; a complete archive ends in blocks of zeros.
        if (end := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
          raise tarfile.ReadError(
            f"damaged header at byte {tar.offset}" if end else "its end is missing"
          )


class _Zip(_Archive):
  """A zip: the central directory is read once."""

  def read(self, member: str) -> bytes:
    offset, size, packed_size, method, crc = self._members[member]
    if size > _MAX_BYTES:
      raise UnreadableImage(f"it has {size} bytes; an image may have at most {_MAX_BYTES}")
    header = self._bytes_at(offset, _ZIP_HEADER_BYTES)
    if not header.startswith(_ZIP_HEADER_START):
      raise UnreadableImage(f"the archive is damaged at byte {offset}; copy it again")
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


def open_location(location: epath.PathLike) -> ImageLocation:
  """Returns the location at a path, by its suffix; UsageError for any other file."""
  path = epath.Path(location)
  name = os.fspath(path)
  kinds = {".zip": _Zip, ".json": _Store} | dict.fromkeys(_TAR_SUFFIXES, _Tar)
  kind = next((kind for suffix, kind in kinds.items() if name.lower().endswith(suffix)), None)
  if path.is_dir() or (kind is None and not path.exists()):
    return _Folder(path)
  if kind is None:
    raise UsageError(
      f"{name} is given for images, but it is not a folder, a .tar, a .zip or the .json of a store"
    )
  if "://" in name:
    raise UsageError(f"{name} is a remote archive; copy it to a local disk")
  return kind(name)


def _plain(path: str) -> str | None:
  """Returns the normalized path of a member; None for a path that would leave the archive's folder."""
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
