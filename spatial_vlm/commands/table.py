"""The commands of `spatial-vlm`, in the order of the method."""

from spatial_vlm.commands import arguments
from spatial_vlm.commands.command import Command
from spatial_vlm.settings.names import PLANNED

COMMANDS = {
  command.name: command
  for command in (
    Command("demo"),
    Command("scenes"),
    Command("data"),
    Command("synthesize", arguments.synthesize_arguments),
    Command("sft", multi_process=True),
    Command("dapo", multi_process=True),
    Command("behaviors"),
    Command("evaluate"),
    Command("compare"),
    Command("report"),
    Command("answer", arguments.answer_arguments, writes=False),
    Command("serve", arguments.serve_arguments, writes=False),
    Command("export", multi_process=True),
    Command(
      "plan",
      arguments.plan_arguments,
      default_config="configs/sft.py:8b",
      configs_of=PLANNED,
      requires_files=False,
    ),
    Command("bench", arguments.bench_arguments),
  )
}
"""Name → command. To add one, write its module and its config, and add it here."""
