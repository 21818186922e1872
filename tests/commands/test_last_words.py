"""What each command says at its end: where its result is, and the commands that read it."""

import importlib
import shlex

import pytest
from etils import epath

from spatial_vlm import cli, config

WORKDIR = epath.Path("runs/mine here")
SETTINGS = {
  "behaviors": ("checkpoint=base",),
  "report": ("runs=runs/a",),
  "plan": ("optimizer.learning_rate=1e-5",),
}


@pytest.mark.parametrize("name", sorted({*cli.COMMANDS} - {"serve"}))
def test_the_commands_it_names_can_be_pasted(name):
  """Each command line that follows a result names a command, and settings that its config has."""
  module = importlib.import_module(cli.COMMANDS[name])
  command = module.COMMAND
  settings = config.load(command.config, SETTINGS.get(name, ()), complete=command.requires_files)
  parser = cli._parser(command, "")
  others = ["PHOTO", "STATEMENT", "--checkpoint", "x", "--draw", "boxes.png"] * (name == "answer")
  said = module.last_words(settings, WORKDIR, parser.parse_args(others))
  result, *steps = said.strip().splitlines()
  assert result.startswith("result: ") and (name == "answer" or str(WORKDIR) in result)
  for step in steps:
    words = shlex.split(step.removeprefix("next:"))
    assert words[0] == "spatial-vlm"
    following = importlib.import_module(cli.COMMANDS[words[1]]).COMMAND
    leaves = [word for word in words[2:] if word.startswith("--config.")]
    rest = [word for word in words[2:] if word not in leaves]
    args = cli._parser(following, "").parse_args(rest)
    config.load(args.config, leaves, complete=False)
