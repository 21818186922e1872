"""Tar and zip archives of images: members are listed once and read at their offsets; nothing is unpacked.

A remote archive is copied to this machine once (see `remote.local_copies`).

Only regular files are read. Links, devices, absolute paths and paths with ".." are never followed.
"""

import functools
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from etils import epath

from spatial_vlm.data.image_locations import Listed, UnusableArchive
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.remote import is_remote, local_copies

TAR_SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_ZIP_HEADER_START, _ZIP_HEADER_BYTES = b"PK\x03\x04", 30
"""Of the local header of a file in a zip (APPNOTE 4.3.7)."""
_ENCRYPTED = -1
"""Stands for the compression method of an encrypted member."""
_MAX_BYTES = 1 << 28
"""Most bytes of one image in a zip: a few crafted kilobytes can decompress to any size."""


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


class _Archive(Listed):
  """A file with members.

  It is opened for each read: that is cheap compared with decoding, and threads and forks share no file position.
  """

  @functools.cached_property
  def _file(self) -> str:
    """Path on this machine."""
    return str(local_copies([epath.Path(self.path)])[0]) if is_remote(self.path) else self.path

  @functools.cached_property
  def _members(self) -> dict[str, _Member]:
    """Regular files by path; of two entries with one path the last counts, as for tar and unzip."""
    try:
      return {name: member for path, member in self._index() if (name := _plain(path))}
    except UnusableArchive:
      raise
    except Exception as error:  # parsers raise anything, even NotImplementedError for a version 9.9
      reason = getattr(error, "strerror", None) or error
      raise UnusableArchive(
        f"{self} cannot be read ({reason}); it may be incomplete or damaged: copy it again"
      ) from error

  def _index(self) -> Iterable[tuple[str, _Member]]:
    raise NotImplementedError

  def _bytes_at(self, offset: int, size: int) -> bytes:
    try:
      with open(self._file, "rb", buffering=0) as file:
        if offset + size > os.fstat(file.fileno()).st_size:
          raise UnreadableImage("the archive ends within it; copy it again")
        return os.pread(file.fileno(), size, offset)
    except OSError as error:
      raise UnreadableImage(error.strerror or str(error)) from error


class Tar(_Archive):
  """An uncompressed tar: the headers are read once, the images at their offsets."""

  def read(self, member: str) -> bytes:
    offset, size, *_ = self._members[member]
    return self._bytes_at(offset, size)

  def _index(self) -> Iterator[tuple[str, _Member]]:
    with open(self._file, "rb") as file:
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


class Zip(_Archive):
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
    with zipfile.ZipFile(self._file) as archive:
      for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if not info.is_dir() and kind in (0, stat.S_IFREG):
          method = _ENCRYPTED if info.flag_bits & 1 else info.compress_type
          member = _Member(info.header_offset, info.file_size, info.compress_size, method, info.CRC)
          yield info.filename, member


def _plain(path: str) -> str | None:
  """Returns the normalized path of a member; None for a path that would leave the archive's folder."""
  parts = [part for part in path.split("/") if part not in ("", ".")]
  unsafe = path.startswith("/") or ".." in parts or "\\" in path or not parts
  return None if unsafe else "/".join(parts)
