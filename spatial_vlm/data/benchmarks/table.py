"""What readers of files have in common: rows with their fields, images in order, bounds, files of a pattern."""

import binascii
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import BadRecord
from spatial_vlm.processor.image import UnreadableImage
from spatial_vlm.remote import is_remote, local_copies

MAX_IMAGES = 64
"""Most images of one question."""
MAX_IMAGE_BYTES = 2**26
"""Longest encoded image, and longest field of a table."""

_SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>.*)")


class Row(NamedTuple):
  """A row with its place."""

  file: str
  line: int
  """Line or row, counted from 1."""
  fields: dict[str, Any]
  """Column → value, without the columns of images; missing values are None."""


class Table(Protocol):
  """Rows of one or several files, and their images."""

  rows: list[Row]
  bad: list[BadRecord]

  def images(self, number: int) -> Sequence[bytes | str]:
    """Returns the encoded images of row `number`, or their names; UnreadableImage where the row holds neither.

    Nothing for a format whose records name their image.
    """
    ...


def column_name(name: str) -> str:
  """Returns the name of a column as tasks know it: in lower case, but for the letters of options.

  >>> column_name("L2-category"), column_name("A")
  ('l2-category', 'A')
  """
  return name if len(name) == 1 and name.isupper() else name.lower()


def present(value: Any) -> Any:
  """Returns a value, or None for one that stands for a missing one: an empty text, `nan` as text or number.

  Tables that went through pandas hold `nan` where a question has no hint or no third option.
  """
  if isinstance(value, str):
    return None if value.strip() in ("", "nan", "NaN") else value
  return None if isinstance(value, float) and math.isnan(value) else value


def decode_base64(text: str) -> bytes:
  """Returns the bytes of a base64 text, which may be a data URL and broken into lines; UnreadableImage for any other.

  >>> decode_base64("data:image/png;base64,aGk=")
  b'hi'
  """
  encoded = text.partition(",")[2] if text.startswith("data:") else text
  try:
    return binascii.a2b_base64("".join(encoded.split()), strict_mode=True)
  except ValueError as error:
    raise UnreadableImage(f"the image is no base64: {error}") from error


def image_or_name(text: str) -> bytes | str:
  """Returns the image that a text holds in base64, which has no full stop, or the text, a name with its suffix."""
  return text if "." in text else decode_base64(text)


def find_files(pattern: epath.PathLike) -> list[Path]:
  """Returns the files of a path or of a pattern such as FOLDER/test-*.parquet, on this machine.

  Raises UsageError if there are none, and if shards (`-00000-of-00003`) are missing: their questions would be too.
  """
  path = epath.Path(pattern)
  found = sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
  if not found or not all(file.is_file() for file in found):
    raise UsageError(
      f"{path} does not exist; give a file, or a pattern such as FOLDER/test-*.parquet"
    )
  _check_shards([file.name for file in found])
  return local_copies(found) if is_remote(path) else [Path(file) for file in found]


def _check_shards(names: Sequence[str]) -> None:
  matches = [match for name in names if (match := _SHARD.fullmatch(name))]
  found = Counter((match["name"], match["end"], int(match["count"])) for match in matches)
  for (name, end, count), present in found.items():
    if present != count:
      raise UsageError(
        f"{present} of {count} shards {name}-…-of-{count:05d}{end} are given; give all by the pattern {name}-*{end}"
      )
