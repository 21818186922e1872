"""JSON of foreign files, and part files of JSON lines.

A run writes one part file at each start: `part-00000.jsonl`, … Only the newest is written to.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from etils import epath

from spatial_vlm.text import short_line

AnyPath = TypeVar("AnyPath", epath.Path, Path)
_NAME = re.compile(r"part-(\d{5,})\.jsonl")

MAX_OBJECT_BYTES = 2**28
"""Of a file that is one JSON object; a tokenizer's has 11 MB."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
  """Returns the JSON value in UTF-8 bytes of a foreign file, which may begin with a byte-order mark.

  Args:
    parse_constant: called with NaN, Infinity and -Infinity; None accepts them.

  Raises:
    ValueError: it is not JSON or not UTF-8, is nested too deeply, gives a key of an object twice, or holds half a
      surrogate pair, which is valid JSON and no Unicode: neither a tokenizer nor a file takes it.
  """
  try:
    value = json.loads(
      data.decode("utf-8-sig"), parse_constant=parse_constant, object_pairs_hook=_object
    )
  except RecursionError as error:
    raise ValueError("the JSON is nested too deeply") from error
  if _SURROGATE.search(data):
    json.dumps(value, ensure_ascii=False).encode()
  return value


def read_object(file: epath.PathLike) -> dict[str, Any]:
  """Returns the JSON object in a file.

  Raises:
    OSError: the file is missing, a folder or unreadable.
    ValueError: it holds anything else, or is larger than MAX_OBJECT_BYTES; the message names the file.
  """
  path = epath.Path(file)
  if not path.is_dir() and (size := path.stat().length) > MAX_OBJECT_BYTES:
    raise ValueError(
      f"{path}: {size:,} bytes are more than the {MAX_OBJECT_BYTES:,} of such a file"
    )
  try:
    value = parse_json(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: {short_line(str(error))}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: it holds a JSON {type(value).__name__}, not an object")
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"the key {twice!r} is given twice in one object")
  return result


def parts(folder: AnyPath) -> list[AnyPath]:
  """Lists the part files in the order of the starts; empty where the folder is missing."""
  return [path for _, path in _numbered(folder)]


def next_part(folder: AnyPath) -> AnyPath:
  """Returns the path of a part file for a start that has not written yet."""
  number = max((number for number, _ in _numbered(folder)), default=-1) + 1
  return folder / f"part-{number:05d}.jsonl"


def _numbered(folder: AnyPath) -> list[tuple[int, AnyPath]]:
  if not folder.exists():
    return []
  named = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
  return sorted((int(match[1]), path) for match, path in named if match)
