"""Images by name, from one or several folders, tar and zip archives, and stores.

  coco                 a folder, flat or with subfolders such as train2017/ and val2017/
  train2017.zip        an archive; nothing is unpacked
  store/train.json     the images of a store that `spatial-vlm data` wrote
  gs://bucket/coco     a remote folder: listed once, each image is read by one request
  gs://bucket/a.zip    a remote archive or store: copied to this machine once, see `remote.local_copies`
  train2017.zip,val    several locations; the first that has the name wins

Only regular files are read. Links, devices, absolute paths and paths with ".." are never followed.
"""

import os
from collections.abc import Sequence

import PIL.Image
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.image_archives import TAR_SUFFIXES, Tar, Zip
from spatial_vlm.data.image_locations import (
  Folder,
  ImageLocation,
  MissingImage,
  RemoteFolder,
  Store,
)
from spatial_vlm.processor.image import UnreadableImage, open_image
from spatial_vlm.remote import is_remote

ImageLocations = epath.PathLike | Sequence[epath.PathLike]
"""A folder or archive, several of them, or several in one string with commas between them."""


class ImageFiles:
  """Random access to images by name; safe for threads, can be pickled, keeps no file open.

  A name is a path inside a location. If that path does not exist, a file matches whose path ends in the name, or whose
  path the name ends in: `1.jpg` finds `train2017/1.jpg`, and the reverse. Archives are indexed at the first use.
  """

  def __init__(self, locations: ImageLocations):
    self.locations = tuple(open_location(path) for path in _split(locations))
    self._known: dict[str, tuple[ImageLocation, str]] = {}

  def __repr__(self) -> str:
    return ", ".join(map(str, self.locations))

  def __contains__(self, name: str) -> bool:
    try:
      self.find(name)
    except MissingImage:
      return False
    return True

  def find(self, name: str) -> tuple[ImageLocation, str]:
    """Returns the location of an image and its path there without opening it.

    Raises:
      MissingImage: the name is at fault; the message gives the reason.
      UnusableArchive: an archive is at fault.
    """
    if name not in self._known:
      _check_name(name)
      members = ((location, location.find(name)) for location in self.locations)
      found = next(((where, member) for where, member in members if member is not None), None)
      if found is None:
        raise MissingImage(f"image {name!r} is not in {self}")
      self._known[name] = found
    return self._known[name]

  def read(self, name: str) -> bytes:
    """Returns the bytes of the file; the UnreadableImage that it raises (or MissingImage) names the file."""
    location, member = self.find(name)
    try:
      return location.read(member)
    except UnreadableImage as error:
      raise _unreadable(location, member, error) from error

  def open(self, name: str) -> PIL.Image.Image:
    """Returns the image, upright and RGB; the UnreadableImage that it raises (or MissingImage) names the file."""
    return self.decode(name, self.read(name))

  def decode(self, name: str, data: bytes) -> PIL.Image.Image:
    """Returns the image in the bytes that `read` returned for the name."""
    try:
      return open_image(data)
    except UnreadableImage as error:
      raise _unreadable(*self.find(name), error.__cause__ or error) from error


def open_location(location: epath.PathLike) -> ImageLocation:
  """Returns the location at a path, by its suffix; UsageError for any other file."""
  path = epath.Path(location)
  name = os.fspath(path)
  kinds = {".zip": Zip, ".json": Store} | dict.fromkeys(TAR_SUFFIXES, Tar)
  kind = next((kind for suffix, kind in kinds.items() if name.lower().endswith(suffix)), None)
  if path.is_dir() or (kind is None and not path.exists()):
    return RemoteFolder(name) if is_remote(path) else Folder(path)
  if kind is None:
    raise UsageError(
      f"{name} is given for images, but it is not a folder, a .tar, a .zip or the .json of a store"
    )
  return kind(name)


def _split(locations: ImageLocations) -> Sequence[epath.PathLike]:
  if not isinstance(locations, str):
    return locations if isinstance(locations, Sequence) else [locations]
  if "," not in locations or epath.Path(locations).exists():
    return [locations]
  return [location for part in locations.split(",") if (location := part.strip())]


def _unreadable(location: ImageLocation, member: str, reason: BaseException) -> UnreadableImage:
  where = os.path.join(str(location), member)
  return UnreadableImage(f"cannot read image {where}: {str(reason) or type(reason).__name__}")


def _check_name(name: str) -> None:
  parts = name.replace("\\", "/").split("/")
  if not name or name.startswith("/") or ".." in parts or "\0" in name:
    raise MissingImage(f"image {name!r} leaves the image folder; give a path inside it")
  if any("\ud800" <= character <= "\udfff" for character in name):
    raise MissingImage(f"image {name!r} contains surrogates; no file can have that name")
