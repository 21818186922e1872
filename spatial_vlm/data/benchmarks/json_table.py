"""JSON files: a list of questions, or one question a line.

What'sUp names its images, whose files lie in a folder or an archive. EmbSpatial-Bench holds them as base64.
"""

import json
import os
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.table import Row, find_files, image_or_name, present
from spatial_vlm.data.records import BadRecord
from spatial_vlm.processor.image import UnreadableImage


class JsonTable:
  """Rows of a JSON list, or of JSON lines, of objects or lists; raises UsageError for any other file.

  An object is a row with its fields; `image` may hold the image in base64. A list [id, …] is a row with the fields "0",
  "1", …, and the file's name in `file`, since the directory of its images depends on it.
  """

  def __init__(self, path: epath.PathLike):
    (file,) = find_files(path)
    try:
      found = _parse(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
      raise UsageError(f"{os.fspath(file)} is no JSON ({error}); copy it again") from error
    if not isinstance(found, list):
      raise UsageError(
        f"{os.fspath(file)} holds a {type(found).__name__}; give a JSON list of questions"
      )
    self.rows: list[Row] = []
    self.bad: list[BadRecord] = []
    self._images: list[str | None] = []
    for number, value in enumerate(found, start=1):
      if reason := _fault(value):
        self.bad.append(BadRecord(os.fspath(file), number, reason))
      else:
        fields = _fields(value, file.name)
        self._images.append(fields.pop("image", None))
        self.rows.append(Row(os.fspath(file), number, fields))

  def images(self, number: int) -> list[bytes | str]:
    """Returns the image of the row; nothing if it holds none, since the record names it then."""
    image = self._images[number]
    if image is None:
      return []
    if not isinstance(image, str):
      raise UnreadableImage(f"image is a {type(image).__name__}; it must be base64 or a name")
    return [image_or_name(image)]


def _parse(text: str) -> Any:
  try:
    return json.loads(text)
  except ValueError:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) < 2 or not lines[0].lstrip().startswith("{"):
      raise
    return [json.loads(line) for line in lines]


def _fault(value: Any) -> str:
  """Returns why a value is no question; empty for a question."""
  if not isinstance(value, dict | list):
    return f"a question is an object or a list, not a {type(value).__name__}"
  try:
    json.dumps(value, ensure_ascii=False).encode()
  except (UnicodeEncodeError, RecursionError) as error:
    return f"its text is no Unicode: {error}"
  return ""


def _fields(value: dict[str, Any] | list[Any], file: str) -> dict[str, Any]:
  if isinstance(value, list):
    value = {"file": file, **{str(place): item for place, item in enumerate(value)}}
  return {name: present(item) for name, item in value.items()}
