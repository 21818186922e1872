"""What each command says at its end: where its result is, and the commands that read it."""

import shlex

import pytest
from etils import epath

from spatial_vlm import cli, config
from spatial_vlm.command_line import parsing

WORKDIR = epath.Path("runs/mine here")
SETTINGS = {
  "behaviors": ("checkpoint=base",),
  "report": ("runs=runs/a",),
  "plan": ("optimizer.learning_rate=1e-5",),
}


@pytest.mark.parametrize("name", sorted({*cli.COMMANDS} - {"serve"}))
def test_the_commands_it_names_can_be_pasted(name):
  """Each command line that follows a result names a command, and settings that its config has."""
  command = cli.COMMANDS[name]
  settings = config.load(command.config, SETTINGS.get(name, ()), complete=command.requires_files)
  others = ["PHOTO", "STATEMENT", "--checkpoint", "x", "--draw", "boxes.png"] * (name == "answer")
  args, _ = parsing.parse(command, others)
  said = command.load().last_words(settings, WORKDIR, args)
  result, *steps = said.strip().splitlines()
  assert result.startswith("result: ") and (name == "answer" or str(WORKDIR) in result)
  for step in steps:
    words = shlex.split(step.removeprefix("next:"))
    assert words[0] == "spatial-vlm"
    args, leaves = parsing.parse(cli.COMMANDS[words[1]], words[2:])
    config.load(args.config, leaves, complete=False)
