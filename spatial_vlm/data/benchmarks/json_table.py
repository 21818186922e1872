"""JSON files of What'sUp: one list of questions; images are named, and their files lie in a folder or an archive."""

import json
import os
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.benchmarks.table import Row, find_files
from spatial_vlm.data.records import BadRecord


class JsonTable:
  """Rows of a JSON list of objects or lists; raises UsageError for any other file.

  An object is a row with its fields. A list [id, …] is a row with the fields "0", "1", ….
  """

  def __init__(self, path: epath.PathLike):
    (file,) = find_files(path)
    try:
      found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
      raise UsageError(f"{os.fspath(file)} is no JSON ({error}); copy it again") from error
    if not isinstance(found, list):
      raise UsageError(
        f"{os.fspath(file)} holds a {type(found).__name__}; give a JSON list of questions"
      )
    self.rows: list[Row] = []
    self.bad: list[BadRecord] = []
    for number, value in enumerate(found, start=1):
      fields = _fields(value)
      if fields is None:
        reason = f"a question is an object or a list, not a {type(value).__name__}"
        self.bad.append(BadRecord(os.fspath(file), number, reason))
      else:
        self.rows.append(Row(os.fspath(file), number, fields))

  def images(self, number: int) -> list[bytes | str]:
    """Returns nothing: the record names its image."""
    return []


def _fields(value: Any) -> dict[str, Any] | None:
  if isinstance(value, list):
    value = {str(place): item for place, item in enumerate(value)}
  return value if isinstance(value, dict) else None
