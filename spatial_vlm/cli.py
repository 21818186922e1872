"""`spatial-vlm COMMAND …`: nothing but dispatch.

Each module of `spatial_vlm.commands` that COMMANDS names holds a `Command` under the name COMMAND.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from etils import epath

from spatial_vlm import __version__, remote
from spatial_vlm import config as config_lib
from spatial_vlm.commands.command import Command
from spatial_vlm.disk_errors import disk_error
from spatial_vlm.workdir import why_not_writable
from spatial_vlm.workdir_lock import only_writer

COMMANDS = {
  "demo": "spatial_vlm.commands.demo",
  "scenes": "spatial_vlm.commands.scenes",
  "data": "spatial_vlm.commands.data",
  "synthesize": "spatial_vlm.commands.synthesize",
  "sft": "spatial_vlm.commands.sft",
  "dapo": "spatial_vlm.commands.dapo",
  "behaviors": "spatial_vlm.commands.behaviors",
  "evaluate": "spatial_vlm.commands.evaluate",
  "compare": "spatial_vlm.commands.compare",
  "report": "spatial_vlm.commands.report",
  "answer": "spatial_vlm.commands.answer",
  "serve": "spatial_vlm.commands.serve",
  "export": "spatial_vlm.commands.export",
  "plan": "spatial_vlm.commands.plan",
  "bench": "spatial_vlm.commands.bench",
}

USAGE = """\
usage: spatial-vlm COMMAND [--config FILE.py:PRESET] [--config.LEAF=VALUE …] [--workdir DIR] …

Teach a vision-language model to reason about space, and ask it.

commands:
{commands}

Every command resumes in its --workdir: after a stop, run the same command again.
Presets: `tiny` runs on two CPU cores, `8b` is Qwen3-VL-8B on accelerators.
More about one of them, its settings included: spatial-vlm COMMAND --help"""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    raise config_lib.UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command; returns the exit status: 0 done, 1 an error of the disk, 2 one of use, 130 Ctrl-C."""
  logging.basicConfig(format="%(levelname)s: %(message)s")
  logging.getLogger("spatial_vlm").setLevel(logging.INFO)
  try:
    _dispatch(list(sys.argv[1:] if argv is None else argv))
  except config_lib.UsageError as error:
    print(f"spatial-vlm: {error}", file=sys.stderr)
    return 2
  except Exception as error:
    if not (message := disk_error(error)):
      raise
    print(f"spatial-vlm: {message}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("\nstopped; run the same command again to go on", file=sys.stderr)
    return 130
  return 0


def _dispatch(argv: list[str]) -> None:
  if not argv or argv[0] in ("-h", "--help"):
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {_summary(module)}" for name, module in COMMANDS.items()]
    print(USAGE.format(commands="\n".join(lines)))
    return
  name, *rest = argv
  if name == "--version":
    print(f"spatial-vlm {__version__}")
    return
  if name not in COMMANDS:
    raise config_lib.UsageError(f"unknown command {name!r}{config_lib.closest(name, COMMANDS)}")
  module = importlib.import_module(COMMANDS[name])
  command: Command = module.COMMAND
  overrides = [argument for argument in rest if argument.startswith("--config.")]
  rest = [argument for argument in rest if not argument.startswith("--config.")]
  parser = _parser(command, module.__doc__ or "")
  if {"-h", "--help"} & set(rest):
    parser.epilog = _settings(_spec(rest, parser.get_default("config")))
  args, unknown = parser.parse_known_args(rest)
  if unknown:
    raise config_lib.UsageError(_unknown(unknown[0], parser, args.config))
  config = config_lib.load(args.config, overrides, complete=command.requires_files)
  workdir = epath.Path(args.workdir).expanduser()
  remote.check_installed([workdir, *config_lib.leaves(config).values()])
  remote.see_files_of_others()
  remote.check_folder(workdir)
  if command.writes and not remote.is_remote(workdir) and (why := why_not_writable(workdir)):
    raise config_lib.UsageError(f"--workdir {workdir} cannot be written: {why}")
  from spatial_vlm import compilation_cache, hosts  # with jax, which the help does without

  def run() -> None:
    compilation_cache.set_up(args.compilation_cache)
    writes = command.writes and hosts.is_first()
    with only_writer(workdir) if writes else contextlib.nullcontext():
      command.run(config, workdir, args)

  hosts.skip_absent_tpu()
  if command.multi_process:
    with hosts.together(args.coordinator, args.processes, args.process):
      run()
  elif (tasks := hosts.launched_tasks()) > 1:
    raise config_lib.UsageError(
      f"{name} was started {tasks} times, and is work for one process: start it without srun and mpirun, or with -n 1"
    )
  else:
    run()
  if hosts.is_first() and (words := module.last_words(config, workdir, args)):
    print(words)


def _parser(command: Command, description: str) -> _Parser:
  parser = _Parser(
    prog=f"spatial-vlm {command.name}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    "--config",
    default=command.config,
    metavar="FILE.py:PRESET",
    help="settings, looked for here, then in the project (default: %(default)s)",
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
    group = parser.add_argument_group(
      "several processes",
      "found on TPU hosts, under Slurm and Open MPI; elsewhere give each process all three",
    )
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


def _spec(arguments: list[str], default: str) -> str:
  """The value of --config among `arguments` that may be incomplete, as those before --help often are."""
  only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
  only_config.add_argument("--config", default=default)
  return only_config.parse_known_args(arguments)[0].config


def _settings(spec: str) -> str:
  values = config_lib.leaves(config_lib.read_preset(spec))
  lines = [
    f"  --config.{name}={'(required)' if value is config_lib.REQUIRED else value}"
    for name, value in values.items()
  ]
  return f"settings of {spec}:\n" + "\n".join(lines)


def _unknown(argument: str, parser: argparse.ArgumentParser, spec: str) -> str:
  if not argument.startswith("-"):
    return f"{argument!r} is one argument too many; see {parser.prog} --help"
  flag = argument.partition("=")[0]
  options = [option for option in parser._option_string_actions if option.startswith("--")]
  settings = [f"--config.{leaf}" for leaf in config_lib.leaves(config_lib.read_preset(spec))]
  return f"unknown option {flag}{config_lib.closest(flag.lstrip('-'), options + settings)}"


def _summary(module: str) -> str:
  """First line of a module's docstring, read without importing the module."""
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(f"command module {module} is missing from the installation")
  docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
  return docstring.partition("\n")[0]


if __name__ == "__main__":
  sys.exit(main())
