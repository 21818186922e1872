"""A chain before it is verified, and the forms in which teachers are asked for one and write it.

Teachers disagree on the order in which the numbers of a box stand. Each form knows its own, and nothing else does:
boxes are converted here, once.
"""

import dataclasses
import json
import re
from typing import Any, Protocol

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Record
from spatial_vlm.inference.questions import QuestionBuilder
from spatial_vlm.synthesis.teacher import Question
from spatial_vlm.tasks import statements


@dataclasses.dataclass(frozen=True)
class Draft:
  """The four steps as a teacher wrote them; nothing is said about their worth."""

  summary: str
  caption: str
  """What the scene looks like, in words; may be empty, since the Caption lists the objects too."""
  objects: tuple[tuple[str, Box], ...]
  """Names and boxes as they were written: names may be repeated, boxes empty or out of the image."""
  reasoning: str
  verdict: int
  """1 yes, 0 no."""


class Unusable(ValueError):
  """A text breaks the form that was asked for; the message says where."""


class Form(Protocol):
  """How a teacher is asked, and how it writes."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """Asks about a record: blindly, or with the label told as a hint that the answer must not betray."""
    ...

  def read(self, text: str) -> Draft:
    """Raises Unusable for a text that breaks the form."""
    ...

  def write(self, draft: Draft) -> str:
    """The text that `read` makes this draft of."""
    ...


def chain(draft: Draft) -> str:
  """The draft in the project's own form, as a policy learns it: the Caption ends in the named boxes.

  Raises ValueError for a step without words.

  >>> cat, mug = ("cat", (0, 20, 400, 600)), ("mug", (500, 0, 900, 80))
  >>> chain(Draft("a", "A cat", (cat, mug), "b", 1)).splitlines()[1]
  'Caption: A cat. cat [0, 20, 400, 600], mug [500, 0, 900, 80]'
  """
  words = draft.caption.strip()
  if words and words[-1] not in ".!?":
    words += "."  # or the boxes would be read with a longer name
  caption = f"{words} {answers.render_boxes(draft.objects)}"
  return answers.render_chain(draft.summary, caption, draft.reasoning, draft.verdict)


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
_OTHERS = 4
_HINT = """

For you alone: people who looked at the image hold this statement to be {truth}, so that the conclusion is \
"{verdict}". Look again for what shows it, and derive it from the image. Do not mention, in any step, that you were \
told.\
"""
_KEYS = ("summary", "caption", "objects", "reasoning", "conclusion")
_VERDICTS = ("no", "yes")
_FENCE = re.compile(r"\s*```(?:json)?[ \t\r]*\n(?P<inside>.*)\n```\s*", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class JsonForm:
  """Structured output: a JSON object, the reasoning before the conclusion.

  A whole answer inside a Markdown fence is taken as well: the fence adds and hides nothing.
  """

  box_key: str
  box_names: tuple[str, str, str, str]
  """Of the numbers of a box, in the order in which this teacher writes them."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """See Form."""
    box = f'"{self.box_key}" is [{", ".join(self.box_names)}].'
    text = f"Statement: {json.dumps(record.caption, ensure_ascii=False)}"
    if hint is not None:
      text += _HINT.format(truth=("false", "true")[hint], verdict=_VERDICTS[hint])
    system = _INSTRUCTION.format(box=box, others=_OTHERS)
    return Question(system, text, image, mime_type, seed, self._schema())

  def read(self, text: str) -> Draft:
    """See Form."""
    fields = _load(text)
    _check_keys("the answer", fields, _KEYS)
    if list(fields) != list(_KEYS):  # who concludes first does not reason
      raise Unusable(f"the answer has its keys in the order {list(fields)}, not {list(_KEYS)}")
    for key in ("summary", "caption", "reasoning"):
      _check_type(key, fields[key], str)
    _check_type("objects", fields["objects"], list)
    if fields["conclusion"] not in _VERDICTS:
      raise Unusable(f'conclusion is {fields["conclusion"]!r}, not "yes" or "no"')
    return Draft(
      _one_line(fields["summary"]),
      _one_line(fields["caption"]),
      tuple(self._read_object(entry) for entry in fields["objects"]),
      _one_line(fields["reasoning"]),
      _VERDICTS.index(fields["conclusion"]),
    )

  def write(self, draft: Draft) -> str:
    """See Form."""
    objects = [
      {"name": name, self.box_key: [box[i] for i in self._order]} for name, box in draft.objects
    ]
    values = (draft.summary, draft.caption, objects, draft.reasoning, _VERDICTS[draft.verdict])
    return json.dumps(dict(zip(_KEYS, values, strict=True)), ensure_ascii=False)

  @property
  def _order(self) -> tuple[int, ...]:
    """Places in a `Box` of the numbers that are written."""
    return tuple(("xmin", "ymin", "xmax", "ymax").index(name) for name in self.box_names)

  def _read_object(self, entry: Any) -> tuple[str, Box]:
    _check_type("an entry of objects", entry, dict)
    _check_keys("an entry of objects", entry, ("name", self.box_key))
    _check_type("name", entry["name"], str)
    name, numbers = _one_line(entry["name"]), entry[self.box_key]
    # bool is an int in Python.
    if not isinstance(numbers, list) or [type(number) for number in numbers] != 4 * [int]:
      raise Unusable(f"{self.box_key} of {name!r} is {numbers!r}, not four whole numbers")
    by_place = dict(zip(self._order, numbers, strict=True))
    return name, (by_place[0], by_place[1], by_place[2], by_place[3])

  def _schema(self) -> dict[str, Any]:
    coordinate = {"type": "integer", "minimum": 0, "maximum": 1000}
    box = {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4}
    entry = _object_schema({"name": {"type": "string"}, self.box_key: box})
    text = {"type": "string"}
    objects = {"type": "array", "items": entry, "minItems": 2, "maxItems": 2 + _OTHERS}
    conclusion = {"type": "string", "enum": list(reversed(_VERDICTS))}
    fields = (text, text, objects, text, conclusion)
    return _object_schema(dict(zip(_KEYS, fields, strict=True)))


GEMINI = JsonForm("box_2d", ("ymin", "xmin", "ymax", "xmax"))
"""As Gemini was taught to write boxes."""
QWEN = JsonForm("bbox_2d", ("xmin", "ymin", "xmax", "ymax"))
"""As Qwen-VL writes boxes, and with it most open models."""


_CHAINS = QuestionBuilder(statements.TASK, "chain")


@dataclasses.dataclass(frozen=True)
class ChainForm:
  """The project's own text, for a policy that teaches itself: it was never taught to take a hint."""

  def question(
    self, record: Record, image: bytes, mime_type: str, seed: int, hint: int | None
  ) -> Question:
    """See Form; raises ValueError for a hint."""
    if hint is not None:
      raise ValueError("a question for the four steps has no room for a hint; ask blindly")
    return Question("", _CHAINS(record.caption).text, image, mime_type, seed, None)

  def read(self, text: str) -> Draft:
    """See Form."""
    answer = answers.STATEMENT.parse(text)
    if answer is None or answer.form != "chain":
      raise Unusable("the answer is not the four steps, each once and in order")
    steps, boxes = answer.steps, answer.boxes
    words = steps["caption"].removesuffix(answers.render_boxes(boxes.items())).strip()
    draft = Draft(steps["summary"], words, tuple(boxes.items()), steps["reasoning"], answer.verdict)
    if not boxes or chain(draft) != text:
      raise Unusable("the Caption does not end in the boxes, each valid and named once")
    return draft

  def write(self, draft: Draft) -> str:
    """See Form; raises ValueError for a step without words."""
    return chain(draft)


CHAIN = ChainForm()


def _load(text: str) -> dict[str, Any]:
  if fence := _FENCE.fullmatch(text):
    text = fence["inside"]
  try:
    fields = json.loads(text, object_pairs_hook=_unique)
  except Unusable:
    raise
  except (ValueError, RecursionError) as error:  # the latter from JSON nested very deeply
    raise Unusable(f"the answer is no whole JSON: {error}") from error
  _check_type("the answer", fields, dict)
  return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  fields = dict(pairs)
  if len(fields) < len(pairs):
    keys = [key for key, _ in pairs]
    raise Unusable(f"keys {sorted({key for key in keys if keys.count(key) > 1})} stand twice")
  return fields


def _check_keys(what: str, fields: dict[str, Any], expected: tuple[str, ...]) -> None:
  if missing := [key for key in expected if key not in fields]:
    raise Unusable(f"{what} lacks {missing}")
  if unknown := [key for key in fields if key not in expected]:
    raise Unusable(f"{what} has the keys {unknown}, which were not asked for")


def _check_type(what: str, value: Any, expected: type) -> None:
  if not isinstance(value, expected):
    name = {str: "text", list: "a list", dict: "an object"}[expected]
    raise Unusable(f"{what} is {str(value)[:80]!r}, not {name}")


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
  return {
    "type": "object",
    "properties": properties,
    "required": list(properties),
    "additionalProperties": False,
  }
