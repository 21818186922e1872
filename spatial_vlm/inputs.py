"""Files and folders that a command reads: looked for at its start, before anything else is loaded."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from spatial_vlm.config import CONFIG_ROOTS, PACKAGE_FOLDER, Config, UsageError, leaves
from spatial_vlm.remote import is_remote

_PATTERN = re.compile(r"[*?\[]")
_DEFAULT = re.compile(r"runs/([a-z]+)(?:_(\w+))?(?:/|$)")
"""A path in the default workdir of a command, or in that of another preset, such as runs/sft_reuse/export."""


def check_inputs(config: Config, names: Iterable[str]) -> None:
  """Raises UsageError if files or folders that these leaves name do not exist.

  The message names each leaf, its path and, for the paths of the presets, the command that writes it. Empty leaves,
  patterns and remote paths are skipped: their readers check them.
  """
  values = leaves(config)
  absent = {name: path for name in names for path in named_paths(values[name]) if not _exists(path)}
  if not absent:
    return
  several = len(absent) > 1
  named = " and ".join(f"{path} ({name})" for name, path in absent.items())
  makers = list(dict.fromkeys(filter(None, map(_maker, absent.values()))))
  verb = "write" if len(makers) > 1 else "writes"
  writes = f"{' and '.join(makers)} {verb} {'them' if several else 'it'}; or " if makers else ""
  flags = " ".join(f"--config.{name}=…" for name in absent)
  raise UsageError(
    f"{named} {'do' if several else 'does'} not exist: {writes}give {'others' if several else 'another'} with {flags}"
  )


def named_paths(value: Any) -> Iterator[str]:
  """Yields the paths of a leaf: one, several with commas between them, or those in a tuple."""
  if isinstance(value, list | tuple):
    for item in value:
      yield from named_paths(item)
  elif isinstance(value, str) and value:
    parts = [value] if "," not in value or find_here(value) else value.split(",")
    yield from (part.strip() for part in parts if part.strip())


def find_here(path: str) -> epath.Path | None:
  """Returns a file or folder that exists, here or in the project, as the shipped checkpoints do; else None."""
  if "\0" in path:
    return None
  places = (epath.Path(path).expanduser(), epath.Path(PACKAGE_FOLDER.parent / path))
  return next((place for place in places if place.exists()), None)


def _exists(path: str) -> bool:
  return is_remote(path) or bool(_PATTERN.search(path)) or find_here(path) is not None


def _maker(path: str) -> str:
  """Returns the command that writes a path of the presets; empty for any other path."""
  match = _DEFAULT.match(path)
  if not match:
    return ""
  command, preset = match.groups()
  if not any((root / "configs" / f"{command}.py").is_file() for root in CONFIG_ROOTS):
    return ""
  options = f" --config configs/{command}.py:{preset} --workdir {match[0].rstrip('/')}"
  return f"`spatial-vlm {command}{options if preset else ''}`"
