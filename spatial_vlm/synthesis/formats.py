"""Response formats: how a teacher is asked for a chain, and how its answer is parsed.

Teachers order the four numbers of a box differently. Each format knows its own order and converts boxes here, once.
"""

import dataclasses
import json
import re
from typing import Any, Protocol

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Record
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.synthesis.draft import Draft, chain
from spatial_vlm.synthesis.errors import UnusableDraftError
from spatial_vlm.synthesis.teacher import Question
from spatial_vlm.tasks import statements


class ResponseFormat(Protocol):
  """Builds the questions to a teacher and parses its answers."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """Builds the question about a record.

    Args:
      hint: the label, which the answer must not betray; None for a blind question.
    """
    ...

  def parse(self, text: str) -> Draft:
    """Parses an answer; raises UnusableDraftError if it does not follow the format."""
    ...

  def render(self, draft: Draft) -> str:
    """Returns the text that `parse` turns into this draft."""
    ...

  def with_limits(self, limits: str) -> "ResponseFormat":
    """Returns the format whose questions tell the teacher these limits; "" for none."""
    ...


_INSTRUCTION = """\
You see an image and read a statement about two objects in it. Decide whether the statement holds, and write down how \
it is decided, so that a student learns to decide such statements. Answer in JSON, in this order:

"summary": one sentence that says what is asked, as a question. It does not judge.

"caption": one or two sentences that describe what the image shows. They say neither how the two objects lie to each \
other nor whether the statement holds, and contain no numbers.

"objects": the objects with their boxes. First the two objects of the statement, named exactly as the statement names \
them, without "the"; where the image shows several of a kind, choose those that the statement most likely means. Then, \
only where the decision needs it, at most {others} others. Every name stands once. {box} The values are whole numbers \
from 0 to 1000: x runs from the left edge of the image to the right one, y from the upper edge to the lower one. A box \
fits tightly around the visible part of its object.

"reasoning": compares the two objects by means of their boxes and ends in the comparison that decides. Write every \
coordinate as x=… or y=…, right after the name of its object, and other quantities as w=… (width), h=… (height), \
gap=… or d=… (distance), such as: "cat spans x=120 to x=400, centre x=260; mug spans x=500 to x=620, centre x=560; \
x=260 < x=560, so the cat is left of the mug." All numbers follow from the boxes; write none of the steps of a \
calculation. Where coordinates alone do not decide (facing, attached to, in front of), say as well what can be seen \
that does.

"conclusion": "yes" if the statement holds, "no" if it does not. It follows from the reasoning.

Left, right, above, below, in front of and behind are meant as the viewer of the image sees them, unless the statement \
says otherwise. Every step is plain text in English on one line, without headings and without markup. If you are told \
how others judged the statement, no step mentions it or shows that you knew: everything is derived from the image.\
"""
"""Part of the key of every stored answer: a changed word makes all of them unknown. New rules belong to `limits`."""
_OTHERS = 4
_HINT = """

For you alone: people who looked at the image hold this statement to be {truth}, so that the conclusion is \
"{verdict}". Look again for what shows it, and derive it from the image. Do not mention, in any step, that you were \
told.\
"""
CHAIN_QUESTION = QuestionBuilder(statements.TASK, "chain")
_KEYS = ("summary", "caption", "objects", "reasoning", "conclusion")
_VERDICTS = ("no", "yes")
_FENCE = re.compile(r"\s*```(?:json)?[ \t\r]*\n(?P<inside>.*)\n```\s*", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class JsonFormat:
  """Structured output: one JSON object with the reasoning before the conclusion.

  An answer that is entirely inside one Markdown fence is accepted too.
  """

  box_key: str
  box_names: tuple[str, str, str, str]
  """Names of the four numbers of a box, in the order in which this teacher writes them."""
  limits: str = ""
  """What the checks require, as told to the teacher after the instruction; see `verify.limits`."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """See ResponseFormat."""
    box = f'"{self.box_key}" is [{", ".join(self.box_names)}].'
    text = f"Statement: {json.dumps(record.caption, ensure_ascii=False)}"
    if hint is not None:
      text += _HINT.format(truth=("false", "true")[hint], verdict=_VERDICTS[hint])
    system = _INSTRUCTION.format(box=box, others=_OTHERS)
    system += self.limits and f"\n\n{self.limits}"
    return Question(system, text, image, mime_type, seed, self._schema())

  def parse(self, text: str) -> Draft:
    """See ResponseFormat."""
    fields = _load_json(without_thoughts(text))
    _check_keys("the answer", fields, _KEYS)
    if list(fields) != list(_KEYS):  # A model that concludes first does not reason.
      raise UnusableDraftError(
        f"the answer has its keys in the order {list(fields)}, not {list(_KEYS)}"
      )
    for key in ("summary", "caption", "reasoning"):
      _check_type(key, fields[key], str)
    _check_type("objects", fields["objects"], list)
    if fields["conclusion"] not in _VERDICTS:
      raise UnusableDraftError(f'conclusion is {fields["conclusion"]!r}, not "yes" or "no"')
    return Draft(
      _one_line(fields["summary"]),
      _one_line(fields["caption"]),
      tuple(self._parse_object(entry) for entry in fields["objects"]),
      _one_line(fields["reasoning"]),
      _VERDICTS.index(fields["conclusion"]),
    )

  def render(self, draft: Draft) -> str:
    """See ResponseFormat."""
    objects = [
      {"name": name, self.box_key: [box[i] for i in self._order]} for name, box in draft.objects
    ]
    values = (draft.summary, draft.caption, objects, draft.reasoning, _VERDICTS[draft.verdict])
    return json.dumps(dict(zip(_KEYS, values, strict=True)), ensure_ascii=False)

  def with_limits(self, limits: str) -> "JsonFormat":
    """See ResponseFormat."""
    return dataclasses.replace(self, limits=limits)

  @property
  def _order(self) -> tuple[int, ...]:
    """Indices into a `Box` of the numbers in written order."""
    return tuple(("xmin", "ymin", "xmax", "ymax").index(name) for name in self.box_names)

  def _parse_object(self, entry: Any) -> tuple[str, Box]:
    _check_type("an entry of objects", entry, dict)
    _check_keys("an entry of objects", entry, ("name", self.box_key))
    _check_type("name", entry["name"], str)
    name, numbers = _one_line(entry["name"]), entry[self.box_key]
    # `type` and not `isinstance`, because bool is a subclass of int.
    if not isinstance(numbers, list) or [type(number) for number in numbers] != 4 * [int]:
      raise UnusableDraftError(f"{self.box_key} of {name!r} is {numbers!r}, not four whole numbers")
    by_index = dict(zip(self._order, numbers, strict=True))
    return name, (by_index[0], by_index[1], by_index[2], by_index[3])

  def _schema(self) -> dict[str, Any]:
    coordinate = {"type": "integer", "minimum": 0, "maximum": 1000}
    box = {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4}
    entry = _object_schema({"name": {"type": "string"}, self.box_key: box})
    text = {"type": "string"}
    objects = {"type": "array", "items": entry, "minItems": 2, "maxItems": 2 + _OTHERS}
    conclusion = {"type": "string", "enum": list(reversed(_VERDICTS))}
    fields = (text, text, objects, text, conclusion)
    return _object_schema(dict(zip(_KEYS, fields, strict=True)))


GEMINI = JsonFormat("box_2d", ("ymin", "xmin", "ymax", "xmax"))
"""Gemini's order of box coordinates."""
QWEN = JsonFormat("bbox_2d", ("xmin", "ymin", "xmax", "ymax"))
"""The order of Qwen-VL and most open models."""


@dataclasses.dataclass(frozen=True)
class ChainFormat:
  """The project's own chain text, for a policy that teaches itself; it takes no hint."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """See ResponseFormat; raises ValueError for a hint."""
    if hint is not None:
      raise ValueError("the chain format takes no hint; ask without one")
    return Question("", CHAIN_QUESTION(record.caption).text, image, mime_type, seed, None)

  def parse(self, text: str) -> Draft:
    """See ResponseFormat."""
    text = without_thoughts(text)
    answer = answers.STATEMENT.parse(text)
    if answer is None or answer.form != "chain":
      raise UnusableDraftError("the answer is not the four steps, each once and in order")
    steps, boxes = answer.steps, answer.boxes
    words = steps["caption"].removesuffix(answers.render_boxes(boxes.items())).strip()
    draft = Draft(steps["summary"], words, tuple(boxes.items()), steps["reasoning"], answer.verdict)
    if not boxes or chain(draft) != text:
      raise UnusableDraftError("the Caption does not end in valid boxes, each named once")
    return draft

  def render(self, draft: Draft) -> str:
    """See ResponseFormat; raises ValueError for a step without words."""
    return chain(draft)

  def with_limits(self, limits: str) -> "ChainFormat":
    """See ResponseFormat; a policy is told none, because it is asked as it was trained."""
    return self


CHAIN = ChainFormat()


def without_thoughts(text: str) -> str:
  """Returns what follows the last `</think>`, which some servers leave in the answer of a thinking model.

  >>> without_thoughts("It is left… </think>\\n\\nYes."), without_thoughts("Yes.")
  ('Yes.', 'Yes.')
  """
  _, end, after = text.rpartition("</think>")
  return after.strip() if end else text


def _load_json(text: str) -> dict[str, Any]:
  if fence := _FENCE.fullmatch(text):
    text = fence["inside"]
  try:
    fields = json.loads(text, object_pairs_hook=_unique_fields)
  except (ValueError, RecursionError) as error:  # RecursionError: deep nesting.
    raise UnusableDraftError(f"the answer is not complete JSON: {error}") from error
  _check_type("the answer", fields, dict)
  return fields


def _unique_fields(items: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(items)
  if len(fields) < len(items):
    keys = [key for key, _ in items]
    raise UnusableDraftError(
      f"keys {sorted({key for key in keys if keys.count(key) > 1})} appear twice"
    )
  return fields


def _check_keys(what: str, fields: dict[str, Any], expected: tuple[str, ...]) -> None:
  if missing := [key for key in expected if key not in fields]:
    raise UnusableDraftError(f"{what} lacks {missing}")
  if unknown := [key for key in fields if key not in expected]:
    raise UnusableDraftError(f"{what} has the unknown keys {unknown}")


def _check_type(what: str, value: Any, expected: type) -> None:
  if not isinstance(value, expected):
    name = {str: "text", list: "a list", dict: "an object"}[expected]
    raise UnusableDraftError(f"{what} is {str(value)[:80]!r}, not {name}")


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
  return {
    "type": "object",
    "properties": properties,
    "required": list(properties),
    "additionalProperties": False,
  }
