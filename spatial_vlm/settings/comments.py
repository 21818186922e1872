"""Reads what config files say about themselves: the comments on their settings, and their presets.

The comment on a setting is the one on its line, and the comment lines directly above it, in its config file or in
`common.py`. Files are parsed, not imported.
"""

import ast
import importlib.util
import io
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

SHARED = "common"
"""File of the groups that several configs share; it has no preset of its own."""

Comments = list[tuple[tuple[str, ...], str]]
"""(names of the enclosing keywords and of the leaf, comment) of the keyword arguments of a file."""


def comment_files(path: Path, project: Sequence[Path], command: str) -> list[Path]:
  """Returns the files whose comments describe the settings of a config file, the nearest first.

  Args:
    path: the config file.
    project: folders of the project's own config files; they describe the settings of a copy without comments.
    command: the command that the config is for.
  """
  folders = [path.parent, *project]
  files = [path, *(folder / f"{name}.py" for folder in folders for name in (command, SHARED))]
  return [file for file in dict.fromkeys(files) if file.is_file()]


def comment_about(name: str, tables: Sequence[Comments]) -> str:
  """Returns the comment on a leaf or a group, from the first table that has one; may be empty.

  In a table, it is the comment of the keyword whose path has most names in common with the leaf's.
  """
  parts = tuple(name.split("."))
  for found in tables:
    matching = [(len(path), text) for path, text in found if path == parts[-len(path) :] and text]
    if matching:
      return max(matching, key=lambda match: match[0])[1]
  return ""


def comments(path: Path, constants: bool = True) -> Comments:
  """Returns the comment on every keyword argument of a file, which may be empty.

  Args:
    path: the file.
    constants: include arguments whose value is a number or a string: these are leaves, never groups.
  """
  source = _source(path)
  trailing, full = comment_lines(source)
  found = []

  def visit(node: ast.AST, names: tuple[str, ...], line: int) -> None:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.keyword) and child.arg:
        inner = (*names, child.arg)
        # On the line of its group, a comment is about the group.
        text = comment_on(child, trailing, full) if child.lineno != line else ""
        if constants or not isinstance(child.value, ast.Constant | ast.UnaryOp):
          found.append((inner, text))
        visit(child.value, inner, child.lineno)
      else:
        visit(child, names, line)

  visit(ast.parse(source), (), 0)
  return found


def _source(path: Path) -> str:
  """Returns the source of a file; empty where it is no Python, which is reported when the config is loaded."""
  try:
    source = importlib.util.decode_source(path.read_bytes())
    ast.parse(source)
  except (SyntaxError, ValueError):
    return ""
  return source


def comment_on(
  node: ast.keyword | ast.Assign, trailing: Mapping[int, str], full: Mapping[int, str]
) -> str:
  """Returns the comment lines directly above a keyword or an assignment, and the one on its first or last line."""
  above = []
  number = node.lineno - 1
  while number in full:
    above.insert(0, full[number])
    number -= 1
  same_line = trailing.get(node.lineno) or trailing.get(node.end_lineno or node.lineno, "")
  return " ".join([*above, same_line]).strip()


def comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """Returns comments by line: those after code, and those that have a line for themselves."""
  trailing, full = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      alone = not token.line[: token.start[1]].strip()
      (full if alone else trailing)[token.start[0]] = token.string.lstrip("# ").rstrip()
  return trailing, full


def docstring_parts(path: Path) -> tuple[str, dict[str, str]]:
  """Returns the first line of a config's docstring, and its presets with their descriptions."""
  docstring = ast.get_docstring(ast.parse(_source(path))) or ""
  title, _, rest = docstring.partition("\n")
  presets: dict[str, str] = {}
  for line in rest.splitlines():
    name, _, text = line.partition("  ")
    if line.startswith(" ") and presets:
      presets[list(presets)[-1]] += f" {line.strip()}"
    elif name and text and " " not in name:
      presets[name] = text.strip()
  return title, presets
