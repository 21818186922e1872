"""Generates the configuration reference from configs/*.py and their comments.

Values come from calling `get_config`. Descriptions are the comments of the config file or of configs/common.py: the
comment on the leaf's line, and the comment lines directly above it.

  python docs/make_configuration.py      # prints the page
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FieldReference, config_dict

from spatial_vlm import config as config_lib

ROOT = Path(__file__).parents[1]
SHARED = "common"
"""File of the groups that several configs share; it has no preset of its own."""

PLAIN = {
  "seed": "seed of every random draw",
  "epochs": "passes over the training set",
  "batch_size": "rows of one batch",
  "micro_batches": "parts in which a batch is computed, one after the other; their gradients are added up",
  "eps_low": "lower clip range: ratios below 1 − `eps_low` get no gradient when the advantage is negative",
  "eps_high": "upper clip range: ratios above 1 + `eps_high` get no gradient when the advantage is positive",
  "max_new_tokens": "longest answer, in tokens",
  "overlong_cache_tokens": "length before the limit over which the overlong penalty grows from 0 to −1",
  "temperature": "sampling temperature",
  "validate_prompts": "prompts of one validation",
  "validate_batch": "prompts that validation answers at once",
  "validate_steps": "batches between two validations",
  "log_steps": "steps between two records of metrics",
  "checkpoint_steps": "steps between two checkpoints",
  "learning_rate": "peak learning rate",
  "schedule": '`"cosine"` or `"constant"`, after the warm-up',
  "warmup_steps": "updates over which the learning rate rises from 0",
  "final_fraction": "last learning rate, as a fraction of the peak",
  "beta1": "decay of the first moment",
  "beta2": "decay of the second moment",
  "eps": "added to the root of the second moment",
  "weight_decay": "decoupled weight decay of matrices",
  "clip_norm": "global norm to which gradients are clipped",
  "slice": "mesh axis of slices: rows of a batch are sharded over it",
  "data": "mesh axis of data parallelism; −1: all devices that the other axes leave",
  "fsdp": "mesh axis that shards rows, parameters and optimizer state; −1: all devices that the other axes leave",
  "tensor": "mesh axis that shards heads and hidden units",
  "prompt_tokens": "length to which prompts are padded; longer ones are skipped and counted",
  "patches": "number to which the image patches of a prompt are padded",
  "max_bad_share": "largest share of unusable records before the command stops",
  "counts.validation": "examples of the validation split",
  "max_handbook_tokens": "limit on the sum of all lines of the handbook, in tokens",
  "dtype": "type of the weights",
  "split": "split that the local teacher knows",
  "records": "file of labelled records",
  "images": "folder, archive or store of the images",
  "validation": "file of the records for validation",
  "evaluation": "file of records that must not be trained on",
  "training_records": "file of the training records",
  "checkpoint": "Hugging Face folder of the model",
  "max_patches": "most patches of a photograph; larger ones are scaled down",
  "base": "Hugging Face folder of the model that the demo starts from",
  "validation_scenes": "scenes of the validation split",
  "test_scenes": "held-out scenes that every method is measured on",
  "sft_epochs": "epochs of both SFT stages",
  "dapo_steps": "policy batches of DAPO",
  "reuse_epochs": "epochs over the model's own short answers",
  "timed_questions": "questions asked one at a time, to measure seconds per answer",
  "scenes_shown": "scenes drawn into the report",
  "train": "examples of the training split",
  "test": "examples of the test split",
  "splits": "splits to read",
  "min_words": "fewest words of a chain, boxes aside",
  "max_words": "most words of a chain, boxes aside",
  "min_box_share": "smallest box, as a share of the image's area",
  "max_box_share": "largest box, as a share of the image's area",
  "api_version": "version of the teacher's API",
  "max_output_tokens": "most tokens of a teacher's answer, thoughts included",
  "max_delay_s": "longest delay between two tries",
  "requests_per_minute": "rate limit of requests",
}
"""Descriptions of leaves whose config has no comment, by name or by full path: the name says nearly all."""


Comments = list[tuple[tuple[str, ...], str]]
"""(names of the enclosing keywords and of the leaf, comment) of the keyword arguments of a file."""


class Leaf(NamedTuple):
  """One row of a config's table."""

  name: str
  kind: str
  tiny: str
  large: str
  """Value of the preset `8b` where it differs, else empty."""
  text: str


def configuration_page(root: Path = ROOT) -> str:
  """Returns the Markdown of the page: one section for each file in configs/."""
  lines = [
    "# Configuration",
    "",
    "A config is a Python file with `get_config(preset)`, one for each command. The tables list every leaf with its",
    "default in the preset `tiny`, its value in `8b` where that differs, its type and its meaning. They are",
    "generated from `configs/*.py` at every build.",
    "",
    "- `--config FILE.py:PRESET` names the file and the preset. The file is looked for in the current folder, then in",
    "  the project (the checkout, or `share/spatial-vlm` of the environment after `pip install`).",
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
    f"| leaf | `tiny` |{' `8b` |' if has_8b else ''} type | meaning |",
    "|---" * (4 + has_8b) + "|",
  ]
  for row in rows:
    if row.kind == "group":
      lines.append(f"| `{row.name}` | |{' |' if has_8b else ''} | {cell(row.text)} |")
      continue
    large = f" {row.large} |" if has_8b else ""
    lines.append(f"| `{row.name}` | {row.tiny} |{large} {row.kind} | {cell(row.text)} |")
  lines += ["", "</div>", ""]
  tiny = flatten(load(path, "tiny"))
  for name in presets:
    if name not in ("tiny", "8b"):
      changed = changes(tiny, flatten(load(path, name)))
      text = ", ".join(f"`{leaf}` = {value}" for leaf, value in changed) or "nothing"
      lines += [f"`{name}` differs from `tiny` in {text}.", ""]
  return lines


def leaves(root: Path, path: Path) -> list[Leaf]:
  """Returns every leaf of a config, in alphabetical order; a group with a comment has a row before its leaves."""
  _, presets = docstring_parts(path)
  tiny = flatten(load(path, "tiny"))
  large = dict(changes(tiny, flatten(load(path, "8b")))) if "8b" in presets else {}
  own = comments(path)
  shared = (
    comments(path.with_name(f"{SHARED}.py")) if path.with_name(f"{SHARED}.py").exists() else []
  )
  notes = assigned_comments(path)
  rows = []
  groups: set[str] = set()
  for name, value in tiny.items():
    group = name.rpartition(".")[0]
    if group and group not in groups and (text := comment_about(group, own, shared)):
      rows.append(Leaf(f"{group}.*", "group", "", "", text))
    groups.add(group)
    text = describe(name, own, shared)
    if name in notes:
      text = f"{text} (`8b`: {notes[name]})"
    rows.append(Leaf(name, type_name(value), show(value), large.get(name, ""), text))
  return rows


def describe(name: str, own: Comments, shared: Comments) -> str:
  """Returns the comment on a leaf: that of its own config, else of the shared groups, else the text in `PLAIN`."""
  text = comment_about(name, own, shared)
  return text or PLAIN.get(name) or PLAIN.get(name.rpartition(".")[2], "")


def comment_about(name: str, own: Comments, shared: Comments) -> str:
  """Returns the comment on a leaf or a group, from the place whose path has most names in common; may be empty."""
  parts = tuple(name.split("."))
  for found in (own, shared):
    matching = [(len(path), text) for path, text in found if path == parts[-len(path) :] and text]
    if matching:
      return max(matching, key=lambda match: match[0])[1]
  return ""


def comments(path: Path) -> Comments:
  """Returns the comment on every keyword argument of a file, which may be empty."""
  source = path.read_text()
  trailing, full = comment_lines(source)
  found = []

  def visit(node: ast.AST, names: tuple[str, ...], line: int) -> None:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.keyword) and child.arg:
        inner = (*names, child.arg)
        # On the line of its group, a comment is about the group.
        text = comment_on(child, trailing, full) if child.lineno != line else ""
        found.append((inner, text))
        visit(child.value, inner, child.lineno)
      else:
        visit(child, names, line)

  visit(ast.parse(source), (), 0)
  return found


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


def docstring_parts(path: Path) -> tuple[str, dict[str, str]]:
  """Returns the first line of a config's docstring, and its presets with their descriptions."""
  docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
  title, _, rest = docstring.partition("\n")
  presets: dict[str, str] = {}
  for line in rest.splitlines():
    name, _, text = line.partition("  ")
    if line.startswith(" ") and presets:
      presets[list(presets)[-1]] += f" {line.strip()}"
    elif name and text and " " not in name:
      presets[name] = text.strip()
  return title, presets


def load(path: Path, preset: str) -> ConfigDict:
  """Returns the config of a preset, as the commands read it."""
  return config_lib.read_preset(f"{path}:{preset}")


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
  """Returns dotted name → value in alphabetical order; a value that may be empty is a `FieldReference`."""
  found = {}
  for name, value in config.items(preserve_field_references=True):
    if isinstance(value, ConfigDict):
      found |= flatten(value, f"{prefix}{name}.")
    else:
      found[prefix + name] = value
  return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yields (leaf, value shown) of every leaf whose value differs."""
  for name, value in after.items():
    if name not in before or show(before[name]) != show(value):
      yield name, show(value)


def show(value: Any) -> str:
  """Returns a value as it is written on the command line."""
  if isinstance(value, FieldReference):
    try:
      value = value.get()
    except config_dict.RequiredValueError:
      return "*required*"
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
