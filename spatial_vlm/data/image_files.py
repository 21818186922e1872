"""Where pictures come from: folders, tar and zip archives, stores; read by name.

  coco                 a folder, flat or with sub-folders such as train2017/ and val2017/
  train2017.zip        read where it lies: nothing is unpacked
  store/train.json     the pictures of a store that `spatial-vlm data` made
  train2017.zip,val    several places; the first that has the name wins

Only ordinary files count. Links, devices, absolute paths and paths with ".." are never followed.
"""

import os
from collections.abc import Sequence

import PIL.Image
from etils import epath

from spatial_vlm.data.image_locations import ImageLocation, MissingImage, open_location
from spatial_vlm.processor.image import UnreadableImage, open_image

ImageLocations = epath.PathLike | Sequence[epath.PathLike]
"""A folder or archive, several of them, or several in one text with commas between."""


class ImageFiles:
  """Random access to pictures by name; safe for threads, can be pickled, holds no file open.

  A name is a path inside a place. Where that does not exist, a file is taken whose path ends in the name, or which the
  name ends in: `train2017/1.jpg` is found by `1.jpg`, and the other way round. Archives are indexed at the first use.
  """

  def __init__(self, places: ImageLocations):
    self.places = tuple(open_location(path) for path in _split(places))
    self._known: dict[str, tuple[ImageLocation, str]] = {}

  def __repr__(self) -> str:
    return ", ".join(map(str, self.places))

  def __contains__(self, name: str) -> bool:
    try:
      self.find(name)
    except MissingImage:
      return False
    return True

  def find(self, name: str) -> tuple[ImageLocation, str]:
    """The place that holds a picture, and its path there; the picture is not opened.

    Raises MissingImage with the reason, or UnusableArchive where an archive is at fault rather than the name.
    """
    if name not in self._known:
      _check_name(name)
      members = ((place, place.find(name)) for place in self.places)
      found = next(((place, member) for place, member in members if member is not None), None)
      if found is None:
        raise MissingImage(f"image {name!r} is not in {self}")
      self._known[name] = found
    return self._known[name]

  def read(self, name: str) -> bytes:
    """The bytes of the file; raises UnreadableImage that names it, MissingImage included."""
    place, member = self.find(name)
    try:
      return place.read(member)
    except UnreadableImage as error:
      raise _unreadable(place, member, error) from error

  def open(self, name: str) -> PIL.Image.Image:
    """The picture, upright and RGB; raises UnreadableImage that names it, MissingImage included."""
    return self.decode(name, self.read(name))

  def decode(self, name: str, data: bytes) -> PIL.Image.Image:
    """The picture in what `read` returned for the name."""
    try:
      return open_image(data)
    except UnreadableImage as error:
      raise _unreadable(*self.find(name), error.__cause__ or error) from error


def _split(places: ImageLocations) -> Sequence[epath.PathLike]:
  if not isinstance(places, str):
    return places if isinstance(places, Sequence) else [places]
  if "," not in places or epath.Path(places).exists():
    return [places]
  return [place for part in places.split(",") if (place := part.strip())]


def _unreadable(place: ImageLocation, member: str, reason: BaseException) -> UnreadableImage:
  where = os.path.join(str(place), member)
  return UnreadableImage(f"cannot read image {where}: {str(reason) or type(reason).__name__}")


def _check_name(name: str) -> None:
  parts = name.replace("\\", "/").split("/")
  if not name or name.startswith("/") or ".." in parts or "\0" in name:
    raise MissingImage(f"image {name!r} leaves the image folder; give a path inside it")
  if any("\ud800" <= character <= "\udfff" for character in name):
    raise MissingImage(f"image {name!r} holds surrogates; no file can have that name")
