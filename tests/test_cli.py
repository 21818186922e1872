"""Dispatch: help, errors on one line, exit statuses."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from etils import epath

from spatial_vlm import cli, workdir_lock
from spatial_vlm import config as config_lib

COMMAND = '''"""Paints the scene.

A longer explanation with a list:
  one
"""

from spatial_vlm.config import UsageError


def run(config, workdir, args):
  if config.fail == "usage":
    raise UsageError("the brush is dry: wet it")
  if config.fail == "stop":
    raise KeyboardInterrupt
  if config.fail == "bug":
    raise ValueError("not foreseen")
  text = f"{config.steps} {type(workdir).__name__} {args.photo} {args.brush_px}"
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / "painted.txt").write_text(text)


def last_words(config, workdir, args):
  return "the scene dries"
'''


def arguments(parser):
  parser.add_argument("photo")
  parser.add_argument("--brush-px", type=int, default=3, help="width of the brush")


CONFIG = """
from ml_collections import config_dict

def get_config(preset):
  if preset != "tiny":
    raise ValueError(f"unknown preset {preset!r}; there is tiny")
  return config_dict.ConfigDict(dict(
    algorithm="paint",
    steps=5,  # strokes, the long ones × 2
    fail="",
    brush=dict(hairs=9),
  ))
"""


@pytest.fixture(autouse=True)
def paint(tmp_path, monkeypatch):
  """A command `paint` with its config, the folder of both being the current one."""
  (tmp_path / "paint_command.py").write_text(COMMAND)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "paint.py").write_text(CONFIG)
  monkeypatch.syspath_prepend(tmp_path)
  command = dataclasses.replace(
    cli.COMMANDS["scenes"], name="paint", add_arguments=arguments, module="paint_command"
  )
  monkeypatch.setitem(cli.COMMANDS, "paint", command)
  monkeypatch.delitem(sys.modules, "paint_command", raising=False)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _error(capsys, *argv):
  """The single line that a wrong command line prints."""
  assert cli.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == "" and err.startswith("spatial-vlm: ") and err.count("\n") == 1
  return err


def test_defaults(paint):
  assert cli.main(["paint", "a.png"]) == 0
  assert (
    paint / "runs/paint/painted.txt"
  ).read_text() == f"5 {type(epath.Path('.')).__name__} a.png 3"


def test_options_may_be_anywhere(paint):
  workdir = paint / "deep" / "folder"
  argv = ["--config.steps=-7", "--workdir", f"{workdir}", "a.png", "--brush-px=8"]
  assert cli.main(["paint", *argv, "--config=configs/paint.py:tiny"]) == 0
  assert (workdir / "painted.txt").read_text().startswith("-7 ")
  assert (workdir / "painted.txt").read_text().endswith(" a.png 8")


def test_last_of_a_repeated_option_wins(paint):
  assert (
    cli.main(
      ["paint", "a", "--workdir", "x", "--config.steps=1", "--workdir", "y", "--config.steps=2"]
    )
    == 0
  )
  assert (paint / "y/painted.txt").read_text().startswith("2 ") and not (paint / "x").exists()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["paimt"], "unknown command 'paimt'; did you mean paint?"),
    (["--config.steps=1"], "unknown command '--config.steps=1'; there are demo, scenes"),
    (["paint"], "required: photo; see spatial-vlm paint --help"),
    (["paint", "a", "b"], "'b' is one argument too many; see spatial-vlm paint --help"),
    (["paint", "a", "--brush=1"], "unknown option --brush; did you mean --brush-px"),
    (["paint", "a", "--work", "x"], "unknown option --work; did you mean --workdir?"),
    (["paint", "a", "--hairs=1"], "unknown option --hairs; did you mean --config.brush.hairs?"),
    (["paint", "a", "--brush-px=wide"], "invalid int value: 'wide'"),
    (["paint", "a", "--config.stepz=1"], "has no leaf stepz; did you mean steps?"),
    (["paint", "a", "--config.steps"], "write --config.steps=VALUE"),
    (["paint", "a", "--config.steps", "3"], "write --config.steps=3"),
    (["paint", "a", "--config.steps", "-3"], "write --config.steps=-3"),
    (["paint", "a", "steps=3"], "write --config.steps=3"),
    (["paint", "a", "--workdir", ""], "--workdir is ''; give a folder or a gs:// address"),
    (["paint", "a", "--workdir=x\0y"], "--workdir is 'x\\x00y'; give a folder"),
    (["paint", "a", "--config", "configs/sft.py:tiny"], "is for 'sft': run `spatial-vlm sft`, or"),
    (["help", "paimt"], "unknown command 'paimt'; did you mean paint?"),
    (["completion", "fish"], "completion is for bash and zsh, not 'fish'"),
    (["paint", "a", "--config.steps=1.5"], "expected int, e.g. 5"),
    (["paint", "a", "--config", "configs/paint.py"], "has the form FILE.py:PRESET"),
    (["paint", "a", "--config", "configs/pant.py:tiny"], "was not found"),
    (["paint", "a", "--config", "configs/paint.py:8b"], "unknown preset '8b'; there is tiny"),
    (["paint", "a", "--workdir", "paint_command.py"], "is a file; give a folder"),
    (["paint", "a", "--config.fail=usage"], "the brush is dry: wet it"),
  ],
)
def test_errors_of_use_are_one_line(capsys, argv, message):
  assert message in _error(capsys, *argv)


def test_nothing_is_made_when_the_command_line_is_wrong(paint, capsys):
  _error(capsys, "paint", "a", "--config.stepz=1")
  assert not (paint / "runs").exists()


def test_a_command_works_under_the_lock_of_its_workdir(monkeypatch, paint):
  held = []

  @contextlib.contextmanager
  def lock(workdir):
    yield
    held.append(workdir)

  monkeypatch.setattr(workdir_lock, "only_writer", lock)
  assert cli.main(["paint", "a", "--workdir", "here"]) == 0
  with pytest.raises(ValueError, match="not foreseen"):
    cli.main(["paint", "a", "--config.fail=bug"])
  assert [str(folder) for folder in held] == ["here"]


def test_interrupt(capsys):
  assert cli.main(["paint", "a", "--config.fail=stop"]) == 130
  assert capsys.readouterr().err == "\nstopped; run the same command again to go on\n"


def test_bugs_keep_their_traceback():
  with pytest.raises(ValueError, match="not foreseen"):
    cli.main(["paint", "a", "--config.fail=bug"])


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"], ["help", "-h"]])
def test_help_lists_the_commands(capsys, argv):
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  width = max(map(len, cli.COMMANDS))
  assert f"  {'paint':{width}}  Paints the scene.\n" in out
  assert all(f"\n  {name} " in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
  "argv", [["paint", "--help"], ["paint", "a", "-h", "--config", "./configs/paint.py:tiny"]]
)
def test_help_of_a_command(capsys, argv):
  assert cli.main(argv) == 0
  out = capsys.readouterr().out
  assert "Paints the scene.\n\nA longer explanation with a list:\n  one\n" in out
  assert "width of the brush" in out
  assert "settings of" in out and "  --config.brush.hairs=9\n      [whole number]" in out
  assert "  --config.steps=5\n      [whole number] strokes, the long ones × 2\n" in out
  assert cli.main(["help", "paint"]) == 0
  assert len(capsys.readouterr().out.splitlines()) == len(out.splitlines())


@pytest.mark.parametrize("argv", [["--version"], ["-V"]])
def test_version(capsys, argv):
  assert cli.main(argv) == 0
  assert capsys.readouterr().out.startswith("spatial-vlm 0.")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_keeps_the_protocol(name):
  """The first docstring line is a sentence that fits; the module defines `run`; its config is there."""
  command = cli.COMMANDS[name]
  assert command.summary.endswith(".") and len(command.summary) <= 100
  assert callable(command.load().run) and callable(command.load().last_words)
  assert config_lib.read_preset(command.config).algorithm in command.takes_configs_of


EVERYTHING_BUT_WORK = """
import sys
from spatial_vlm import cli
argvs = [["--help"], ["-V"], ["help"], ["completion", "bash"], ["sfd"]]
wrong = (
  ["--config.stebs=1"], ["--config.seed", "1"], ["--no-such-option"], ["--topology=v9"], ["--processes=2"],
  ["PHOTO", "TEXT", "--checkpoint=x", "--config.nothing=1"], ["--workdir", ""], ["--config", "a.py"],
  ["PHOTO", "TEXT", "--checkpoint=x", "--config", "configs/data.py:tiny"],
)
for name in cli.COMMANDS:
  argvs += [[name, "--help"], ["help", name], *([name, *arguments] for arguments in wrong)]
for argv in argvs:
  assert cli.main(argv) in (0, 2), argv
print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "numpy", "PIL", "transformers", "grain"}))
"""


def test_help_and_errors_import_nothing_heavy():
  """Help, versions, completion and wrong arguments answer at once: no command's module, no JAX, no NumPy."""
  environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
  done = subprocess.run(
    [sys.executable, "-c", EVERYTHING_BUT_WORK],
    capture_output=True,
    text=True,
    cwd=Path(cli.__file__).parents[1],
    env=environment,
  )
  assert done.returncode == 0, done.stderr
  *help_pages, imported = done.stdout.splitlines()
  assert imported == "[]"
  assert "Traceback" not in done.stderr and len(help_pages) > 2000
