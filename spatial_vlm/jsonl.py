"""Part files of JSON lines, one for each start of a run: `part-00000.jsonl`, … Only the newest is written to."""

import re
from pathlib import Path
from typing import TypeVar

from etils import epath

AnyPath = TypeVar("AnyPath", epath.Path, Path)
_NAME = re.compile(r"part-(\d{5,})\.jsonl")


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
