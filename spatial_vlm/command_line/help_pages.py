"""Help: the list of commands, and the page of a command with its options, presets and settings."""

import itertools
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections.config_dict import FieldReference

from spatial_vlm import config as config_lib
from spatial_vlm.command_line.parsing import make_parser
from spatial_vlm.command_line.terminal import wrap, wrap_help
from spatial_vlm.commands.command import Command
from spatial_vlm.settings.comments import (
  comment_about,
  comment_files,
  comments,
  docstring_parts,
)
from spatial_vlm.settings.range_table import RANGES
from spatial_vlm.settings.ranges import Range

USAGE = (
  "usage: spatial-vlm COMMAND [--config FILE.py:PRESET] [--config.LEAF=VALUE …] [--workdir DIR] …",
  "       spatial-vlm help [COMMAND] | --version | completion bash | completion zsh",
)
ABOUT = "Teach a vision-language model to reason about space, and ask it."
NOTES = (
  "Every command resumes in its --workdir: after a stop, run the same command again.",
  "Presets: `tiny` runs on two CPU cores, `8b` is Qwen3-VL-8B on accelerators.",
  "More about one of them, its settings included: spatial-vlm COMMAND --help",
  'Completion: eval "$(spatial-vlm completion bash)", or zsh, in the shell\'s start file.',
)
TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text", tuple: "tuple"}


def overview(commands: Mapping[str, Command], width: int) -> str:
  """Returns the list of the commands."""
  column = max(map(len, commands)) + 4
  lines = [line for usage in USAGE for line in wrap(usage, width, " " * 9, "")]
  lines += ["", *wrap(ABOUT, width), "", "commands:"]
  for name, command in commands.items():
    lines += wrap(command.summary, width, " " * column, f"  {name}".ljust(column))
  for note in NOTES:
    lines += ["", *wrap(note, width)] if note is NOTES[0] else wrap(note, width)
  return "\n".join(lines)


def command_page(command: Command, spec: str, width: int) -> str:
  """Returns the help of a command, with the presets and the settings of the config `spec`."""
  parser = make_parser(command, width)
  parser.description = wrap_help(command.help, width)
  parser.epilog = "\n".join([*_presets(spec, width), "", *_settings(spec, width)])
  return parser.format_help().rstrip()


def _presets(spec: str, width: int) -> Iterator[str]:
  path, _ = config_lib.find_preset(spec)
  _, presets = docstring_parts(path)
  file = spec.rpartition(":")[0]
  yield from wrap(f"presets (--config {file}:NAME):", width)
  column = max(map(len, presets), default=0) + 4
  for name, text in presets.items():
    yield from wrap(text, width, " " * column, f"  {name}".ljust(column))


def _settings(spec: str, width: int) -> Iterator[str]:
  config = config_lib.read_preset(spec)
  algorithm = str(config.get("algorithm", ""))
  path, _ = config_lib.find_preset(spec)
  files = comment_files(path, config_lib.config_folders(), algorithm)
  of_leaves, of_groups = [comments(file) for file in files], [comments(f, False) for f in files]
  yield from wrap(f"settings of {spec} (--config.LEAF=VALUE replaces one):", width)
  fields = config_lib.fields(config)
  names = sorted(fields, key=lambda name: (name.rpartition(".")[0], name))
  for group, members in itertools.groupby(names, lambda name: name.rpartition(".")[0]):
    if group:
      about = comment_about(group, of_groups)
      yield from ["", *wrap(f"{group}: {about}" if about else f"{group}:", width, "  ")]
    for name in members:
      allowed = RANGES.get(algorithm, {}).get(name)
      text = f"[{kind(fields[name], allowed)}] {comment_about(name, of_leaves)}"
      yield from wrap(f"--config.{name}={shown(fields[name])}", width, " " * 6, "  ")
      yield from wrap(text, width, " " * 6)


def kind(field: Any, allowed: Range | None) -> str:
  """Returns what a setting may be: its type and its range."""
  is_optional = isinstance(field, FieldReference) and field.get_type() is not None
  leaf_type = field.get_type() if isinstance(field, FieldReference) else type(field)
  text = TYPES[leaf_type]
  if allowed:
    text = f"{text}, {allowed.text}" if leaf_type in (int, float) else allowed.text
  can_be_none = is_optional and not config_lib.is_required(field)
  return f"{text}, or none" if can_be_none else text


def shown(field: Any) -> str:
  """Returns a setting's value as a shell reads it."""
  if config_lib.is_required(field):
    return "… (required)"
  value = field.get() if isinstance(field, FieldReference) else field
  if value is None:
    return "none"
  text = str(value)
  if set(text) & set('"$`\\!'):
    return shlex.quote(text)
  return f'"{text}"' if text and shlex.quote(text) != text else text
