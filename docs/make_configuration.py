"""Generates the configuration reference from configs/*.py and their comments.

Values come from calling `get_config`. Descriptions are the comments of the config file or of configs/common.py: the
comment on the leaf's line, and the comment lines directly above it.

  python docs/make_configuration.py      # prints the page
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference

from spatial_vlm import config as config_lib
from spatial_vlm.settings.comments import (
  SHARED,
  comment_about,
  comment_files,
  comment_lines,
  comment_on,
  comments,
  docstring_parts,
)
from spatial_vlm.settings.range_table import RANGES

ROOT = Path(__file__).parents[1]


class Leaf(NamedTuple):
  """One row of a config's table."""

  name: str
  kind: str
  tiny: str
  large: str
  """Value of the preset `8b` where it differs, else empty."""
  allowed: str
  text: str


def configuration_page(root: Path = ROOT) -> str:
  """Returns the Markdown of the page: one section for each file in configs/."""
  lines = [
    "# Configuration",
    "",
    "A config is a Python file with `get_config(preset)`, one for each command. The tables list every leaf with its",
    "default in the preset `tiny`, its value in `8b` where that differs, its type, its range and its meaning. They are",
    "generated from `configs/*.py` at every build.",
    "",
    "- `--config FILE.py:PRESET` names the file and the preset. It is looked for in the project (the checkout, or",
    "  `share/spatial-vlm` of the environment after `pip install`), then in the current folder; `./FILE.py` is the",
    "  file in the current folder.",
    "- `--config.optimizer.learning_rate=1e-4` replaces one leaf. The value is read as the type of the default;",
    "  `none` empties a leaf that may be empty; tuples are written as in Python.",
    "- A leaf marked *required* has no default: give it on the command line.",
    "- An unknown leaf is an error that names the closest ones.",
    "",
  ]
  for path in config_files(root):
    lines += section(root, path)
  return "\n".join(lines)


def config_files(root: Path) -> list[Path]:
  """Returns the configs of commands in alphabetical order, without the file of shared groups."""
  return sorted(
    path for path in (root / "configs").glob("*.py") if path.stem not in (SHARED, "__init__")
  )


def section(root: Path, path: Path) -> list[str]:
  """Returns the lines about one config: its presets, its leaves, and what further presets change."""
  title, presets = docstring_parts(path)
  rows = leaves(root, path)
  has_8b = "8b" in presets
  lines = [
    f"## {path.stem}",
    "",
    f"`configs/{path.name}`. {title}",
    "",
    "| preset | |",
    "|---|---|",
  ]
  lines += [f"| `{name}` | {cell(text)} |" for name, text in presets.items()]
  lines += [
    "",
    '<div class="settings" markdown>',
    "",
    f"| leaf | `tiny` |{' `8b` |' if has_8b else ''} type | allowed | meaning |",
    "|---" * (5 + has_8b) + "|",
  ]
  for row in rows:
    if row.kind == "group":
      lines.append(f"| `{row.name}` | |{' |' if has_8b else ''} | | {cell(row.text)} |")
      continue
    large = f" {row.large} |" if has_8b else ""
    lines.append(
      f"| `{row.name}` | {row.tiny} |{large} {row.kind} | {cell(row.allowed)} | {cell(row.text)} |"
    )
  lines += ["", "</div>", ""]
  tiny = config_lib.fields(load(path, "tiny"))
  for name in presets:
    if name not in ("tiny", "8b"):
      changed = changes(tiny, config_lib.fields(load(path, name)))
      text = ", ".join(f"`{leaf}` = {value}" for leaf, value in changed) or "nothing"
      lines += [f"`{name}` differs from `tiny` in {text}.", ""]
  return lines


def leaves(root: Path, path: Path) -> list[Leaf]:
  """Returns every leaf of a config, in alphabetical order; a group with a comment has a row before its leaves."""
  _, presets = docstring_parts(path)
  tiny = config_lib.fields(load(path, "tiny"))
  large = dict(changes(tiny, config_lib.fields(load(path, "8b")))) if "8b" in presets else {}
  files = comment_files(path, [root / "configs"], path.stem)
  about_leaves, about_groups = [comments(f) for f in files], [comments(f, False) for f in files]
  notes = assigned_comments(path)
  rows = []
  groups: set[str] = set()
  for name, value in tiny.items():
    group = name.rpartition(".")[0]
    if group and group not in groups and (text := comment_about(group, about_groups)):
      rows.append(Leaf(f"{group}.*", "group", "", "", "", text))
    groups.add(group)
    text = comment_about(name, about_leaves)
    if name in notes:
      text = f"{text} (`8b`: {notes[name]})"
    allowed = RANGES[path.stem].get(name)
    rows.append(
      Leaf(
        name,
        type_name(value),
        show(value),
        large.get(name, ""),
        allowed.text if allowed else "",
        text,
      )
    )
  return rows


def assigned_comments(path: Path) -> dict[str, str]:
  """Returns leaf → comment for assignments `config.LEAF = value  # comment` in the function of the preset `8b`."""
  source = path.read_text()
  trailing, full = comment_lines(source)
  notes = {}
  for function in ast.parse(source).body:
    if not (isinstance(function, ast.FunctionDef) and is_8b(path, function.name)):
      continue
    for node in ast.walk(function):
      if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("config."):
        if text := comment_on(node, trailing, full):
          notes[ast.unparse(node.targets[0]).removeprefix("config.")] = text
  return notes


def is_8b(path: Path, function: str) -> bool:
  """Returns whether `presets` of the file, or its `get_config`, gives the preset `8b` by this function."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Dict):
      for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and key.value == "8b":
          return ast.unparse(value) == function
    if isinstance(node, ast.keyword) and node.arg == "8b":
      return ast.unparse(node.value) == function
  return False


def load(path: Path, preset: str) -> ConfigDict:
  """Returns the config of a preset, as the commands read it."""
  return config_lib.read_preset(f"{path}:{preset}")


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields (leaf, value shown) of every leaf whose value differs."""
  for name, value in after.items():
    if name not in before or show(before[name]) != show(value):
      yield name, show(value)


def show(value: Any) -> str:
  """Returns a value as it is written on the command line."""
  if config_lib.is_required(value):
    return "*required*"
  if isinstance(value, FieldReference):
    value = value.get()
  if value is None:
    return "*none*"
  if value == "":
    return "*empty*"
  text = str(value) if isinstance(value, (str, bool)) else repr(value)
  return f"`{text}`"


def type_name(value: Any) -> str:
  """Returns the type as which a value on the command line is read."""
  kind = value.get_type() if isinstance(value, FieldReference) else type(value)
  return kind.__name__


def cell(text: str) -> str:
  """Returns text for a cell of a table; a vertical line needs no escape inside code."""
  parts = text.replace("\n", " ").split("`")
  return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


if __name__ == "__main__":
  print(configuration_page())
