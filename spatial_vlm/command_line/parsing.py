"""Reads the arguments of a command; what is wrong with them is said in one line."""

import argparse
import itertools
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from spatial_vlm import config as config_lib
from spatial_vlm.command_line.terminal import wrap
from spatial_vlm.commands.command import Command
from spatial_vlm.config import UsageError

SETTING = "--config."


class Parser(argparse.ArgumentParser):
  """Raises UsageError instead of printing and exiting."""

  def error(self, message: str) -> NoReturn:
    raise UsageError(f"{message}; see {self.prog} --help")


class CommandLine(NamedTuple):
  """A command's arguments."""

  args: argparse.Namespace
  settings: list[str]
  """Settings, as --config.LEAF=VALUE."""


def make_parser(command: Command, width: int = 80) -> Parser:
  """Returns the parser of a command's arguments, its settings aside; its help is wrapped to `width` columns."""
  parser = Parser(
    prog=f"spatial-vlm {command.name}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config",
    default=command.config,
    metavar="FILE.py:PRESET",
    help="settings: a file of the project, or ./FILE.py (default: %(default)s)",
  )
  parser.add_argument(
    "--workdir",
    default=f"runs/{command.name}",
    metavar="DIR",
    help="folder or gs:// address for everything the command writes (default: %(default)s)",
  )
  parser.add_argument(
    "--no-compilation-cache",
    dest="compilation_cache",
    action="store_false",
    help="compile every program anew, in place of keeping them in ~/.cache/spatial_vlm/compiled",
  )
  if command.multi_process:
    about = "found on TPU hosts, under Slurm and Open MPI 4; elsewhere give each process all three"
    group = parser.add_argument_group("several processes", "\n".join(wrap(about, width - 2)))
    group.add_argument(
      "--coordinator", metavar="HOST:PORT", help="where process 0 runs, a free port there"
    )
    group.add_argument(
      "--processes", type=int, metavar="N", help="how many there are; 1 alone: look for no other"
    )
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
  if command.add_arguments:
    command.add_arguments(parser)
  return parser


def parse(command: Command, arguments: Sequence[str]) -> CommandLine:
  """Reads the arguments of a command; raises UsageError for wrong ones."""
  parser = make_parser(command)
  for argument, following in itertools.pairwise([*arguments, ""]):
    if argument.startswith(SETTING) and "=" not in argument:
      value = "VALUE" if not following or following.startswith("--") else following
      raise UsageError(f"{argument} has no value: write {argument}={value}")
  settings = [argument for argument in arguments if argument.startswith(SETTING)]
  others = [argument for argument in arguments if not argument.startswith(SETTING)]
  args, unknown = parser.parse_known_args(others)
  if unknown:
    raise UsageError(_unknown(unknown[0], parser, args.config))
  if not args.workdir or "\0" in args.workdir:
    raise UsageError(f"--workdir is {args.workdir!r}; give a folder or a gs:// address")
  if command.multi_process:
    _check_processes(args.coordinator, args.processes, args.process)
  return CommandLine(args, settings)


def _check_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
  """Raises UsageError for options of several processes that do not fit together."""
  given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
  missing = [name for name, value in given.items() if value is None]
  if (coordinator, processes, process) == (None, 1, None) or len(missing) == len(given):
    return
  if coordinator is None or processes is None or process is None:
    raise UsageError(
      f"{', '.join(missing)} missing: several processes need --coordinator HOST:PORT, --processes N and --process I"
      " (0 … N−1); omit all three on TPU hosts, under Slurm and under Open MPI 4"
    )
  if not 0 <= process < processes:
    raise UsageError(
      f"--process is {process} and --processes {processes}; processes are numbered from 0 to {processes - 1}"
    )
  host, _, port = coordinator.rpartition(":")
  if not host or not port.isdigit():
    raise UsageError(
      f"--coordinator is {coordinator!r}; give host and port of process 0, e.g. 10.0.0.2:8476"
    )


def given_config(command: Command, arguments: Sequence[str]) -> str:
  """Returns the value of --config among arguments that may be incomplete, as those before --help often are."""
  only_config = Parser(add_help=False, allow_abbrev=False)
  only_config.add_argument("--config", default=command.config)
  return only_config.parse_known_args(arguments)[0].config


def _unknown(argument: str, parser: Parser, spec: str) -> str:
  """Returns what to write instead of an unknown argument."""
  settings = config_lib.leaves(config_lib.read_preset(spec))
  flag, equals, _ = argument.partition("=")
  if not argument.startswith("-"):
    if equals and flag in settings:
      return f"{argument!r} is one argument too many; write {SETTING}{argument}"
    return f"{argument!r} is one argument too many; see {parser.prog} --help"
  options = [option for option in parser._option_string_actions if option.startswith("--")]
  names = [f"{SETTING}{leaf}" for leaf in settings]
  return f"unknown option {flag}{config_lib.closest(flag.lstrip('-'), options + names)}"
