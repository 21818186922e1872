"""Locations of images, read by name: folders, local and remote, and stores (`image_archives` has tars and zips).

Only regular files are read. Links, devices, absolute paths and paths with ".." are never followed.
"""

import dataclasses
import functools
import logging
import os
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.shards import Shards
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.remote import list_files, read_file

log = logging.getLogger(__name__)


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
class Folder:
  """A folder of files on a disk."""

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
    if not _inside(os.path.realpath(path), self._real_path):
      raise MissingImage(f"image {name!r} leaves the image folder through a link")
    return os.path.isfile(path)  # not a pipe, which would never end

  @functools.cached_property
  def _real_path(self) -> str:
    return os.path.realpath(self.path)

  @functools.cached_property
  def _subfolders(self) -> tuple[str, ...]:
    """Names of subfolders."""
    if not self.path.is_dir():
      return ()
    with os.scandir(self.path) as entries:
      return tuple(sorted(entry.name for entry in entries if entry.is_dir()))


@dataclasses.dataclass(frozen=True)
class Listed:
  """A location with a list of its members; `_members` maps their paths to what `read` needs."""

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


class RemoteFolder(Listed):
  """A folder of files on an object store. It is listed once: a request for each of 100,000 names would take hours."""

  @functools.cached_property
  def _members(self) -> dict[str, str]:
    log.info("listing %s", self)
    return list_files(self.path)

  def read(self, member: str) -> bytes:
    try:
      return read_file(self._members[member])
    except OSError as error:
      raise UnreadableImage(error.strerror or str(error)) from error


class Store(Listed):
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


def _only(name: str, found: Sequence[str]) -> str | None:
  if len(found) > 1:
    raise MissingImage(
      f"image {name!r} may be {' or '.join(map(repr, found))}; name it with its folder"
    )
  return found[0] if found else None


def _inside(path: str, folder: str) -> bool:
  return os.path.commonpath((path, folder)) == folder
