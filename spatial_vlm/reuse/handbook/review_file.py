"""A handbook as a YAML file that people read and edit.

One item is a behavior. Reading checks every field and names the line of a mistake.
"""

import hashlib
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.statements.captions import masked_caption, relation_in_words
from spatial_vlm.text import short_line

BY_HAND = "by-hand"
"""Split of the provenance of a behavior that a person wrote."""
_HEADER = """\
Behaviors: named procedures that a question recalls. Edit this file, then start the same command with
--config.review=THIS_FILE: the index is then made from it.

- Remove an item to drop a behavior; add one with a name and an instruction and a relation or questions.
- name: behavior_ and lower-case letters, digits and underscores; fine-tuned policies cite it.
- instruction: one line; X and Y stand for the two objects.
- relation: key of the relation that is decided; questions: statements with X and Y that recall the behavior.
- recalls, successes, saved_tokens: measured by `evaluate`; they decide what a full handbook keeps.
- sources: the training records that it was extracted from. Without sources, a behavior counts as written by hand.\
"""
_REQUIRED = ("name", "instruction")
_TYPES = {
  "name": str,
  "instruction": str,
  "relation": str,
  "questions": list,
  "recalls": int,
  "successes": int,
  "saved_tokens": float,
  "sources": list,
}
_WIDTH = 100


_STAMP = "# not edited: "
"""Begins the last line, which holds a hash of the lines above."""


def render(behaviors: Iterable[Behavior], examples: Mapping[str, str]) -> str:
  """Returns the text of the file.

  Args:
    behaviors: in the order of the file.
    examples: record (`SPLIT:ID`) → its reasoning, of which one is shown for each behavior.
  """
  comment = "\n".join(f"# {line}".rstrip() for line in _HEADER.splitlines())
  items = [_render_item(behavior, examples) for behavior in behaviors]
  text = "\n\n".join([comment, *items]) + "\n\n"
  return f"{text}{_STAMP}{_hash(text)}\n"


def is_edited(text: str) -> bool:
  """Returns whether a person changed a text of `render`."""
  above, stamp, digest = text.rpartition(_STAMP)
  return not stamp or digest.strip() != _hash(above)


def _hash(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _render_item(behavior: Behavior, examples: Mapping[str, str]) -> str:
  fields: dict[str, Any] = {
    "name": behavior.name,
    "instruction": behavior.instruction,
    "relation": behavior.relation,
    "questions": list(behavior.questions),
    "recalls": behavior.recalls,
    "successes": behavior.successes,
    "saved_tokens": round(behavior.saved_tokens, 1),
  }
  written = yaml.safe_dump([fields], sort_keys=False, allow_unicode=True, width=10_000)
  lines = [f"# chains: {len(behavior.provenance)}, tokens: {behavior.tokens}"]
  shown = next((record for record in behavior.provenance if record in examples), None)
  if shown:
    text = f"{shown}: {textwrap.shorten(examples[shown], 300)}"
    printable = "".join(c if c.isprintable() else " " for c in text)  # YAML refuses the others
    lines += textwrap.wrap(printable, _WIDTH, initial_indent="# ", subsequent_indent="#   ")
  sources = yaml.safe_dump(
    {"sources": list(behavior.provenance)}, default_flow_style=None, width=_WIDTH
  )
  return "\n".join([*lines, written + textwrap.indent(sources, "  ").rstrip()])


def read(path: epath.PathLike, count_tokens: Callable[[str], int]) -> list[Behavior]:
  """Reads the behaviors of an edited file; raises UsageError with the line of a mistake."""
  path = epath.Path(path)
  try:
    text = path.read_text()
    root, items = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
  except yaml.MarkedYAMLError as error:
    line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
    raise UsageError(f"{path}{line}: no YAML ({error.problem}); {_QUOTES}") from error
  except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
    raise UsageError(
      f"{path} cannot be read ({short_line(str(error))}); give the behaviors.yaml of a run"
    ) from error
  if not isinstance(items, list) or not isinstance(root, yaml.SequenceNode) or not items:
    raise UsageError(f"{path} holds no list of behaviors; write each as an item that begins with -")
  lines = [node.start_mark.line + 1 for node in root.value]
  behaviors: dict[str, Behavior] = {}
  for node, item, line in zip(root.value, items, lines, strict=True):
    place = f"{path}:{line}"
    try:
      _check_unique_keys(node)
      behavior = _behavior(item, path.name, count_tokens)
      if behavior.name in behaviors:
        raise ValueError(f"there are two behaviors named {behavior.name}; rename or remove one")
    except ValueError as error:
      raise UsageError(f"{place}: {error}") from error
    behaviors[behavior.name] = behavior
  return list(behaviors.values())


_RELATIONS = (
  "write a relation of VSR (left of, contains), also as 'not left of', 'reversed behind' (Y is behind X) or "
  '"left of, from Y\'s viewpoint"; for any other, give questions and no relation'
)
_QUOTES = "put text with a colon or # in quotes, and indent with spaces"


def _check_unique_keys(node: yaml.Node) -> None:
  if isinstance(node, yaml.MappingNode):
    keys = [key.value for key, _ in node.value]
    if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
      raise ValueError(f"{', '.join(repeated)} stands twice in one behavior")


def _behavior(item: Any, file: str, count_tokens: Callable[[str], int]) -> Behavior:
  if not isinstance(item, dict):
    raise ValueError(f"{item!r} is no behavior; write fields as `name: …`")
  _check_fields(item)
  stated = item.get("relation", "").strip()
  relation = relation_in_words(stated)
  if stated and not relation:
    raise ValueError(f"relation {stated!r} is not known; {_RELATIONS}")
  questions: Sequence[str] = item.get("questions") or [masked_caption(relation)] * bool(relation)
  if not questions:
    raise ValueError(f"{item['name']} has neither relation nor questions; give one of them")
  return Behavior(
    name=item["name"],
    instruction=item["instruction"].strip(),
    relation=relation,
    questions=tuple(dict.fromkeys(questions)),
    provenance=tuple(item.get("sources") or [f"{BY_HAND}:{file}"]),
    tokens=count_tokens(f"{item['name']}: {item['instruction'].strip()}"),
    recalls=item.get("recalls", 0),
    successes=item.get("successes", 0),
    saved_tokens=float(item.get("saved_tokens", 0.0)),
  )


def _check_fields(item: Mapping[str, Any]) -> None:
  """Raises ValueError for missing and unknown fields, and for values of a wrong type."""
  if missing := [key for key in _REQUIRED if key not in item]:
    raise ValueError(f"{' and '.join(missing)} missing; a behavior has {', '.join(_TYPES)}")
  if unknown := [str(key) for key in item if key not in _TYPES]:
    raise ValueError(f"unknown field {', '.join(unknown)}; a behavior has {', '.join(_TYPES)}")
  for key, value in item.items():
    kinds = (int, float) if _TYPES[key] is float else (_TYPES[key],)
    if type(value) not in kinds:
      raise ValueError(f"{key} is {value!r}, expected {_NAMES[_TYPES[key]]}")
    if isinstance(value, list) and (bad := [v for v in value if not isinstance(v, str)]):
      raise ValueError(f"{key} holds {bad[0]!r}, which is no text; put it in quotes")


_NAMES = {
  str: "text (in quotes, if it reads like a number or like yes)",
  list: "a list",
  int: "a whole number",
  float: "a number",
}
