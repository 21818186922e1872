"""Completion for bash and zsh by argcomplete: commands, options, settings with their values, presets, files."""

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spatial_vlm import config as config_lib
from spatial_vlm.command_line.parsing import SETTING, given_config, make_parser
from spatial_vlm.commands.command import Command
from spatial_vlm.settings.comments import docstring_parts
from spatial_vlm.settings.range_table import RANGES

if TYPE_CHECKING:
  from argcomplete.finders import CompletionFinder

SHELLS = ("bash", "zsh")
PROGRAM = "spatial-vlm"


def is_asked() -> bool:
  """Returns whether a shell started this process to complete a line."""
  return "_ARGCOMPLETE" in os.environ


def script(shell: str) -> str:
  """Returns the code that turns completion on in a shell; raises UsageError for other shells."""
  if shell not in SHELLS:
    raise config_lib.UsageError(
      f"completion is for {' and '.join(SHELLS)}, not {shell!r}: write completion bash"
    )
  from argcomplete.shell_integration import shellcode  # here: other commands do without it

  return shellcode([PROGRAM], shell=shell)


def complete(commands: Mapping[str, Command]) -> None:
  """Writes the completions of the line in the environment and ends the process."""
  words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split()
  parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False)
  parser.add_argument("-V", "--version", action="store_true")
  parser.add_argument("-h", "--help", action="store_true")
  of_command = parser.add_subparsers()
  for name, command in commands.items():
    chosen = name in words[1:2]
    options = [_with_settings(command, words[2:])] if chosen else []
    of_command.add_parser(name, help=command.summary, parents=options, add_help=False)
  of_command.add_parser("help").add_argument("command", choices=tuple(commands))
  of_command.add_parser("completion").add_argument("shell", choices=SHELLS)
  # Offered without "=", a setting would be followed by a space. The setting whose value is written is not offered.
  exclude = words[-1:] + [
    option
    for name, sub in of_command.choices.items()
    if name in words[1:2]
    for option in sub._option_string_actions
    if option.startswith(SETTING) and not option.endswith("=")
  ]
  _finder()(parser, exclude=exclude)


def _finder() -> "CompletionFinder":
  """Returns a finder whose values without a description have none in zsh; argcomplete 3.6 shows "None"."""
  from argcomplete.finders import CompletionFinder  # here: other commands do without it

  class Finder(CompletionFinder):
    def quote_completions(self, completions, cword_prequote, last_wordbreak_pos):
      quoted = super().quote_completions(completions, cword_prequote, last_wordbreak_pos)
      self._display_completions = dict.fromkeys(quoted, "") | self._display_completions
      return quoted

  return Finder()


def _with_settings(command: Command, words: list[str]) -> argparse.ArgumentParser:
  """Returns the parser of a command with an option for each setting of the config that the line names so far."""
  parser = make_parser(command)
  try:
    fields = config_lib.fields(config_lib.read_preset(given_config(command, words)))
  except config_lib.UsageError:  # e.g. half of a file's name
    fields = config_lib.fields(config_lib.read_preset(command.config))
  ranges = RANGES.get(command.name, {})
  for name, field in fields.items():
    values = ranges[name].names if name in ranges else ()
    action = parser.add_argument(f"{SETTING}{name}", f"{SETTING}{name}=", metavar="VALUE")
    if names := values or (("true", "false") if type(field) is bool else ()):
      action.choices = tuple(filter(None, names))
  for action in parser._actions:
    if action.dest == "config":
      action.choices = _presets(command)
    elif action.dest == "help":
      action.option_strings = ["-h", "--help"]
  return parser


def _presets(command: Command) -> tuple[str, ...]:
  """Returns the presets of the files that a command's configs come from."""
  found = []
  for name in command.takes_configs_of:
    path, _ = config_lib.find_preset(f"configs/{name}.py:")
    found += [f"configs/{name}.py:{preset}" for preset in docstring_parts(path)[1]]
  return tuple(found)
