"""What the command line knows of a command before it imports the command's module."""

import argparse
import ast
import dataclasses
import functools
import importlib
import importlib.util
import types
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Command:
  """One command: how the command line starts it.

  Its module defines `run(config, workdir, args)`, which loads, calls and writes, and raises `config.UsageError` for an
  expected failure. The module's docstring is the command's help; its first line appears in the list of commands.
  """

  name: str
  add_arguments: Callable[[argparse.ArgumentParser], None] | None = None
  """Adds the command's own arguments."""
  default_config: str = ""
  """Default of --config; empty: `configs/NAME.py:tiny`."""
  configs_of: tuple[str, ...] = ()
  """Commands whose configs it takes; empty: its own."""
  requires_files: bool = True
  """False if required leaves that name files may be omitted."""
  writes: bool = True
  """False if the command writes nothing in its workdir."""
  multi_process: bool = False
  """True if processes on several hosts run the command together (see `hosts`)."""
  module: str = ""
  """Module that defines `run`; empty: that of its name in this package."""

  @property
  def config(self) -> str:
    """Default of --config."""
    return self.default_config or f"configs/{self.name}.py:tiny"

  @property
  def takes_configs_of(self) -> tuple[str, ...]:
    """Commands whose configs it takes."""
    return self.configs_of or (self.name,)

  @property
  def module_name(self) -> str:
    """Dotted name of the module that defines `run`."""
    return self.module or f"{__package__}.{self.name}"

  def load(self) -> types.ModuleType:
    """Imports the command's module, with the libraries that it needs."""
    return importlib.import_module(self.module_name)

  @functools.cached_property
  def help(self) -> str:
    """The docstring of its module, read without importing it."""
    spec = importlib.util.find_spec(self.module_name)
    if spec is None or spec.origin is None:
      raise ModuleNotFoundError(
        f"command module {self.module_name} is missing from the installation"
      )
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""

  @property
  def summary(self) -> str:
    """First line of its help."""
    return self.help.partition("\n")[0]
