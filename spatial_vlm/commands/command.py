"""What the command line knows of a command."""

import argparse
import dataclasses
from collections.abc import Callable

from etils import epath

from spatial_vlm.config import Config


def accept(config: Config) -> None:
  """Accepts every config: the check of a command whose leaves need none."""


@dataclasses.dataclass(frozen=True)
class Command:
  """One command: its functions and how the command line starts it.

  The module's docstring is the command's help; its first line appears in the list of commands.
  """

  name: str
  run: Callable[[Config, epath.Path, argparse.Namespace], None]
  """Loads, calls and writes, in the workdir; raises `config.UsageError` for an expected failure."""
  check: Callable[[Config], object] = accept
  """Raises `config.UsageError` for settings that cannot work."""
  add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
  """Adds the command's own arguments."""
  default_config: str = ""
  """Default of --config; empty: `configs/NAME.py:tiny`."""
  requires_files: bool = True
  """False if required leaves that name files may be omitted."""
  writes: bool = True
  """False if the command writes nothing in its workdir."""
  multi_process: bool = False
  """True if processes on several hosts run the command together (see `hosts`)."""

  @property
  def config(self) -> str:
    """Default of --config."""
    return self.default_config or f"configs/{self.name}.py:tiny"
