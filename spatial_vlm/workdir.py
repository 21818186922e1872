"""What a workdir holds before a command writes there: nothing, a run of some command, or files of others."""

import os
from collections.abc import Mapping
from typing import Any

from etils import epath

SETTINGS_FILE = "config.json"
_OF_NO_RUN = (".log", ".txt", ".out", ".err")
"""Suffixes of what a shell or a scheduler may write next to a run."""
_OF_A_RUN = frozenset(
  (
    "checkpoints",
    "metrics",
    "tensorboard",
    "journal",
    "predictions",
    "origin.json",
    "results.json",
    "behaviors.yaml",
  )
)
"""Entries of a run whose config.json was lost."""


def foreign_entries(workdir: epath.Path) -> list[str]:
  """Returns names in a folder without config.json that no run left there, sorted; hidden files and logs are allowed."""
  if not workdir.is_dir():
    return []
  names = [path.name for path in workdir.iterdir()]
  if SETTINGS_FILE in names or _OF_A_RUN & {*names}:
    return []
  return sorted(
    name
    for name in names
    if not name.startswith(".") and name != "lost+found" and not name.endswith(_OF_NO_RUN)
  )


def holds_only_settings(workdir: epath.Path) -> bool:
  """Returns whether the run in a workdir has left no file but config.json, as a first start that failed."""
  return not any(
    any(path.iterdir()) if path.is_dir() else path.name != SETTINGS_FILE
    for path in workdir.iterdir()
    if not path.name.startswith(".")
  )


def other_command(stored: Mapping[str, Any], given: Mapping[str, Any]) -> str | None:
  """Returns the command whose run a workdir holds, if `given` are settings of another one; None otherwise.

  Args:
    stored: content of config.json.
    given: settings by their dotted names.
  """
  _, *words = str(stored.get("command", "")).split() or [""]
  before = stored["config"].get("algorithm") or next(iter(words), None)
  now = given.get("algorithm")
  return before if before and now and before != now else None


def why_not_writable(workdir: epath.Path) -> str | None:
  """Returns why no file can be made in a local workdir, which may not exist yet; None if nothing stands against it."""
  path = os.path.abspath(workdir)
  while not os.path.lexists(path):
    path = os.path.dirname(path)
  if not os.path.isdir(path):
    return f"{path} is a file; give a folder"
  if not os.access(path, os.W_OK | os.X_OK):
    return f"{path} is read-only for you; give another folder"
  return None


def read_by(workdir: epath.Path, texts: Mapping[str, str]) -> str | None:
  """Returns the leaf that names the workdir itself, which the command would read and write over; None without one.

  Args:
    texts: leaves that may hold a path (see `config.free_texts`).
  """

  def place(path: str) -> str:
    return path.rstrip("/") if "://" in path else os.path.realpath(os.path.expanduser(path))

  own = place(os.fspath(workdir))
  return next((name for name, value in texts.items() if place(value) == own), None)
