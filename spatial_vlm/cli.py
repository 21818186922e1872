"""`spatial-vlm COMMAND …`: nothing but dispatch.

A command's module, and with it JAX, is imported after its arguments and its config are found to be right.
"""

import logging
import os
import shutil
import sys
from collections.abc import Sequence

from spatial_vlm import __version__
from spatial_vlm import config as config_lib
from spatial_vlm.command_line import completion, parsing
from spatial_vlm.command_line.help_pages import command_page, overview
from spatial_vlm.command_line.terminal import never_fail_to_encode
from spatial_vlm.commands.command import Command
from spatial_vlm.commands.table import COMMANDS
from spatial_vlm.config import UsageError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status: 0 done, 2 an error of use, 130 stopped by Ctrl-C."""
  if completion.is_asked():
    completion.complete(COMMANDS)
  never_fail_to_encode(sys.stdout, sys.stderr)
  logging.basicConfig(format="%(levelname)s: %(message)s")
  logging.getLogger("spatial_vlm").setLevel(logging.INFO)
  try:
    _dispatch(list(sys.argv[1:] if argv is None else argv))
    sys.stdout.flush()
  except UsageError as error:
    print(f"spatial-vlm: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\nstopped; run the same command again to go on", file=sys.stderr)
    return 130
  except BrokenPipeError:  # `spatial-vlm sft --help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141  # a shell's exit status for SIGPIPE
  return 0


def _dispatch(argv: list[str]) -> None:
  name, *rest = argv or ["help"]
  if name in ("-h", "--help", "help"):
    print(_help(rest[:1]))
  elif name in ("-V", "--version"):
    print(f"spatial-vlm {__version__}")
  elif name == "completion":
    print(completion.script(*rest[:1] or [""]))
  else:
    command = _find(name)
    if {"-h", "--help"} & set(rest):
      print(command_page(command, parsing.given_config(command, rest), _columns()))
    else:
      _run(command, rest)


def _help(names: list[str]) -> str:
  """Returns the help of a command, or the list of all."""
  if not names:
    return overview(COMMANDS, _columns())
  command = _find(names[0])
  return command_page(command, command.config, _columns())


def _columns() -> int:
  return shutil.get_terminal_size().columns


def _find(name: str) -> Command:
  if name not in COMMANDS:
    raise UsageError(f"unknown command {name!r}{config_lib.closest(name, COMMANDS)}")
  return COMMANDS[name]


def _run(command: Command, arguments: list[str]) -> None:
  """Checks arguments, config and workdir, then imports the command and runs it."""
  args, settings = parsing.parse(command, arguments)
  config = config_lib.load(args.config, settings, complete=command.requires_files)
  config_lib.check_algorithm(config, command.name, command.takes_configs_of)
  from etils import epath

  from spatial_vlm import remote

  workdir = epath.Path(args.workdir).expanduser()
  remote.check_installed([workdir, *config_lib.leaves(config).values()])
  remote.see_files_of_others()
  remote.check_folder(workdir)
  if workdir.exists() and not workdir.is_dir():
    raise UsageError(f"--workdir {workdir} is a file; give a folder")
  module = command.load()
  from spatial_vlm import compilation_cache, hosts

  if command.multi_process:
    with hosts.together(args.coordinator, args.processes, args.process):
      compilation_cache.set_up(args.compilation_cache)
      module.run(config, workdir, args)
  elif (tasks := hosts.launched_tasks()) > 1:
    raise UsageError(
      f"{command.name} was started {tasks} times, and is work for one process: start it without srun and mpirun, or "
      "with -n 1"
    )
  else:
    compilation_cache.set_up(args.compilation_cache)
    module.run(config, workdir, args)


if __name__ == "__main__":
  sys.exit(main())
