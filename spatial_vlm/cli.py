"""`spatial-vlm COMMAND …`: nothing but dispatch.

A command's module, and with it JAX, is imported after its arguments and its config are found to be right.
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence

from spatial_vlm import __version__
from spatial_vlm import config as config_lib
from spatial_vlm.command_line import completion, parsing
from spatial_vlm.command_line.help_pages import command_page, overview
from spatial_vlm.commands.command import Command
from spatial_vlm.commands.table import COMMANDS
from spatial_vlm.config import UsageError
from spatial_vlm.disk_errors import disk_error
from spatial_vlm.streams import set_up_streams


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status: 0 done, 1 an error of the disk, 2 one of use, 130 Ctrl-C."""
  if completion.is_asked():
    completion.complete(COMMANDS)
  set_up_streams()
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
  except Exception as error:
    if not (message := disk_error(error)):
      raise
    print(f"spatial-vlm: {message}", file=sys.stderr)
    return 1
  return 0


def _dispatch(argv: list[str]) -> None:
  name, *rest = argv or ["help"]
  if name in ("-h", "--help", "help"):
    print(_help(rest))
  elif name in ("-V", "--version"):
    print(f"spatial-vlm {__version__}")
  elif name == "completion":
    print(completion.script(*rest[:1] or [""]))
  elif {"-h", "--help"} & set(rest):
    print(_help(argv))
  else:
    _run(_find(name), rest)


def _help(arguments: list[str]) -> str:
  """Returns the help of the command that comes first, or the list of all."""
  columns = shutil.get_terminal_size().columns
  if not arguments or arguments[0].startswith("-"):
    return overview(COMMANDS, columns)
  name, *rest = arguments
  command = _find(name)
  return command_page(command, parsing.given_config(command, rest), columns)


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
  from spatial_vlm.workdir import read_by, why_not_writable
  from spatial_vlm.workdir_lock import only_writer

  workdir = epath.Path(args.workdir).expanduser()
  remote.check_installed([workdir, *config_lib.leaves(config).values()])
  remote.see_files_of_others()
  remote.check_folder(workdir)
  if command.writes and (leaf := read_by(workdir, config_lib.free_texts(config))):
    raise UsageError(
      f"--workdir {workdir} is what {leaf} names, and would be written over; give another folder"
    )
  if command.writes and not remote.is_remote(workdir) and (why := why_not_writable(workdir)):
    raise UsageError(f"--workdir {workdir} cannot be written: {why}")
  module = command.load()
  from spatial_vlm import allocator, compilation_cache, hosts

  allocator.keep_freed_memory()

  def run() -> None:
    compilation_cache.set_up(args.compilation_cache)
    writes = command.writes and hosts.is_first()
    with only_writer(workdir) if writes else contextlib.nullcontext():
      module.run(config, workdir, args)

  hosts.skip_absent_tpu()
  if command.multi_process:
    with hosts.together(args.coordinator, args.processes, args.process):
      run()
  elif (tasks := hosts.launched_tasks()) > 1:
    raise UsageError(
      f"{command.name} was started {tasks} times, and is work for one process: start it without srun and mpirun, or "
      "with -n 1"
    )
  else:
    run()
  if hosts.is_first() and (words := module.last_words(config, workdir, args)):
    print(words)


if __name__ == "__main__":
  sys.exit(main())
