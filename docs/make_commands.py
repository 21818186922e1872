"""Generates the page "Commands" from the help texts of the commands."""

from pathlib import Path

from spatial_vlm.commands.table import COMMANDS


def commands_page(root: Path) -> str:
  """Returns the Markdown of the page: every command with its help text."""
  lines = [
    "# Commands",
    "",
    "    spatial-vlm COMMAND --config configs/COMMAND.py:PRESET --config.LEAF=VALUE … --workdir DIR",
    "",
    "Every command resumes in its `--workdir`: after a stop, run the same command again.",
    "`spatial-vlm COMMAND --help` shows the same text with the options and the settings.",
    "[Files](files.md) describes what commands read and write.",
    "",
    "| command | what it does |",
    "|---|---|",
  ]
  helps = {name: command.help for name, command in COMMANDS.items()}
  lines += [f"| [`{name}`](#{name}) | {_cell(text)} |" for name, text in helps.items()]
  for name, text in helps.items():
    lines += ["", f"## {name}", "", "```text", text, "```", ""]
    if (root / "configs" / f"{name}.py").exists():
      lines.append(f"Settings: [configs/{name}.py](configuration.md#{name}).")
  return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
  return text.partition("\n")[0].replace("|", "\\|")
