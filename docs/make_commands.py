"""Generates the page "Commands" from the help texts of the commands."""

import ast
from pathlib import Path


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
  helps = {name: command_help(root, name) for name in command_names(root)}
  lines += [f"| [`{name}`](#{name}) | {_cell(text)} |" for name, text in helps.items()]
  for name, text in helps.items():
    lines += ["", f"## {name}", "", "```text", text, "```", ""]
    if (root / "configs" / f"{name}.py").exists():
      lines.append(f"Settings: [configs/{name}.py](configuration.md#{name}).")
  return "\n".join(lines) + "\n"


def command_names(root: Path) -> list[str]:
  """Returns the keys of `COMMANDS` in `spatial_vlm/cli.py`, read without importing it."""
  for node in ast.parse((root / "spatial_vlm" / "cli.py").read_text()).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS":
      if isinstance(node.value, ast.Dict):
        return [str(ast.literal_eval(key)) for key in node.value.keys if key]
      return [str(name) for name in ast.literal_eval(node.value)]
  raise LookupError("spatial_vlm/cli.py assigns no COMMANDS; the page Commands lists its keys")


def command_help(root: Path, name: str) -> str:
  """Returns the docstring of a command's module or package."""
  folder = root / "spatial_vlm" / "commands"
  path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
  return ast.get_docstring(ast.parse(path.read_text())) or ""


def _cell(text: str) -> str:
  return text.partition("\n")[0].replace("|", "\\|")
