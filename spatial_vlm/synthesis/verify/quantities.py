"""Checks the numbers of a Reasoning step against the boxes that they must come from.

A coordinate of one object (`cat centre x=260`) must be an edge or the centre of that object's box. A coordinate without
an object may belong to any box. Other quantities may be sizes of any object, or distances, gaps and overlaps of any
two. Written comparisons must hold.
"""

import collections
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from spatial_vlm.answers import Box
from spatial_vlm.data.measurements import HOLDS, Number, any_of, compared, read_numbers
from spatial_vlm.data.relations import NEAR_DISTANCE, gaps, offsets, overhangs

_SIZES = {"w": 0, "width": 0, "h": 1, "height": 1}
"""Keys of sizes → their axis."""
_FRAME = {0, 500, 1000}
"""Edges and middle of the image, in units of 0–1000."""
_MAX_COUNT = 10
"""A number without a key up to this value may be a count of things."""
_CLAUSE = re.compile(r"(?:[^;.]|\.(?!\s|$))+")
_LENGTHS = re.compile(
  r"\b(?:apart|away|between|by|differ\w*|distan\w*|gaps?|long|offsets?|outside|over(?:hang|lap)\w*|separat\w*|units"
  r"|wide|tall|width|height)\b",
  re.IGNORECASE,
)
"""Words of a clause in which x=… and y=… may be lengths instead of positions."""
_FEW_WORDS = r"(?=(?:[A-Za-z'’-]+ ){0,5}?\(?(?:\w+=)?\d)"
_SPELLINGS = (
  (re.compile(r"(?<=\d) ?(?:px|pixels?)\b"), ""),
  (re.compile(r"(?<=[A-Za-z]) ?= ?(?=\d)"), "="),
  (
    re.compile(r"\b([xywh])(?:[- ]coordinate)?(?: ?[:≈~] ?| (?:is|of|at) )(?=\d)", re.IGNORECASE),
    r"\1=",
  ),
  (re.compile(rf"(?<=\d)\)? (?:is|are) (?:less|smaller) than {_FEW_WORDS}"), " < "),
  (re.compile(rf"(?<=\d)\)? (?:is|are) (?:greater|larger|more) than {_FEW_WORDS}"), " > "),
  (re.compile(r"\s*(<=|>=|[<>≤≥])\s*"), r" \1 "),
)
"""Spellings of keys and comparisons → the spelling that `read_numbers` parses."""


def find_number_error(
  reasoning: str, objects: Iterable[tuple[str, Box]], tolerance: float
) -> str | None:
  """Returns the first error: a number that does not follow from the boxes, or a comparison that does not hold.

  Args:
    reasoning: the text to check.
    objects: names and boxes.
    tolerance: allowed difference in units of the boxes; a rounded centre differs by less than 1.

  Returns:
    A description of the error; None without any.
  """
  for spelling, plain in _SPELLINGS:
    reasoning = spelling.sub(plain, reasoning)
  boxes = _boxes_by_name(objects)
  rest, errors = _without_quoted_boxes(reasoning, boxes)
  clauses = (match[0] for match in _CLAUSE.finditer(rest))
  return next(itertools.chain(errors, _clause_errors(clauses, boxes, tolerance)), None)


def _boxes_by_name(objects: Iterable[tuple[str, Box]]) -> dict[str, Box]:
  """Returns the boxes by lower-case name, and by a name's last word if no other name ends in it.

  "The table" thus also finds a dining table.
  """
  boxes: dict[str, Box] = {}
  for name, box in objects:
    boxes.setdefault(name.casefold(), box)
  heads = collections.Counter(name.split()[-1] for name in boxes if name.strip())
  short = {name.split()[-1]: box for name, box in boxes.items() if name.strip()}
  return {head: box for head, box in short.items() if heads[head] == 1} | boxes


def _without_quoted_boxes(text: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  """Removes bracketed boxes from the text; also returns an error for each that is not its object's box."""
  errors = []
  pattern = re.compile(
    rf"(?:({any_of(boxes)}) )?[\[(]\s*(-?\d+(?:(?:\s*,\s*|\s+)-?\d+){{3}})\s*[\])]", re.IGNORECASE
  )
  for name, numbers in pattern.findall(text):
    box = tuple(map(int, re.findall(r"-?\d+", numbers)))
    allowed = [boxes[name.casefold()]] if name else boxes.values()
    if box not in allowed:
      errors.append(f"{name or 'no object'} has the box {list(box)}")
  return pattern.sub(r"\1", text), errors


def _clause_errors(
  clauses: Iterable[str], boxes: Mapping[str, Box], tolerance: float
) -> Iterator[str]:
  """Yields an error for each comparison that does not hold and each number that matches no quantity."""
  seen: set[tuple[str, float, str]] = set()
  for clause in clauses:
    numbers = list(read_numbers(clause, boxes))
    comparisons = list(compared(numbers, clause))
    for left, sign, right in comparisons:
      # Without keys, "=" only ends a calculation and compares nothing.
      if (sign != "=" or (left.key and right.key)) and not HOLDS[sign](left.value, right.value):
        yield f"{_text(left)} {sign} {_text(right)} does not hold"
    sides = {number.start for left, _, right in comparisons for number in (left, right)}
    for number in numbers:
      owner = _owner(number, clause, boxes, number.start in sides)
      object_name = owner if _is_close(owner, number, clause) else ""
      known = (number.key, number.value, object_name) in seen or _is_count_or_percentage(
        number, clause
      )
      found = known or any(
        abs(number.value - value) <= tolerance
        for value in _possible(number.key.lower(), clause, boxes, owner)
      )
      if not found:
        yield f"{_text(number)} matches no quantity of {owner or 'any box'}"
      seen |= {(number.key, number.value, name) for name in (owner, "")}


def _text(number: Number) -> str:
  return f"{number.key}={number.value}" if number.key else str(number.value)


def _owner(number: Number, clause: str, boxes: Iterable[str], is_compared: bool) -> str:
  """Returns the object that the number describes; "" if the clause does not say, as in "x=260 < x=560"."""
  named_after = re.match(
    rf"\)?\s*(?:\(|for |of )\s*(?:the |an? )?({any_of(boxes)})", clause[number.end :], re.IGNORECASE
  )
  owner = named_after[1] if named_after else number.owner
  return owner.casefold() if named_after or number.named or not is_compared else ""


def _is_close(owner: str, number: Number, clause: str) -> bool:
  """Tells whether the number follows its owner closely, as in "the cat's centre is x=260"."""
  before = clause[: number.start].casefold()
  return bool(
    owner and re.search(rf"\b{re.escape(owner)}(?:['’]s?)?(?: [a-z]+){{0,3}} \(?$", before)
  )


def _is_count_or_percentage(number: Number, clause: str) -> bool:
  return not number.key and (number.value <= _MAX_COUNT or clause[number.end :].startswith("%"))


def _possible(key: str, clause: str, boxes: Mapping[str, Box], owner: str) -> Iterator[float]:
  """Yields all values that `key=…` may have in the clause."""
  own = [boxes[owner]] if owner else list(dict.fromkeys(boxes.values()))
  every = list(dict.fromkeys(boxes.values()))
  if key in ("x", "y"):
    axis = "xy".index(key)
    yield from _positions(own, axis)
    if not owner:
      yield from _FRAME
    if _LENGTHS.search(clause):
      yield from _sizes(own, axis)
      yield from _lengths(every, axis)
  elif key in _SIZES:
    yield from _sizes(own, _SIZES[key])
  else:
    yield from _FRAME if not key else (NEAR_DISTANCE,)
    yield from _distances(every)
    for axis in (0, 1):
      yield from _lengths(every, axis)
      yield from _sizes(every, axis)
      if not key:
        yield from _positions(every, axis)


def _positions(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  """Yields edges and centres."""
  for box in boxes:
    low, high = box[axis], box[axis + 2]
    yield from (low, high, (low + high) / 2)


def _sizes(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  return (box[axis + 2] - box[axis] for box in boxes)


def _lengths(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  """Yields lengths along one axis: distances of centres and edges, gaps, overlaps and overhangs."""
  for a, b in itertools.permutations(boxes, 2):
    low, high = max(a[axis], b[axis]), min(a[axis + 2], b[axis + 2])
    yield from (offsets(a, b)[axis], gaps(a, b)[axis], overhangs(a, b)[axis], max(0, high - low))
    yield from (abs(a[i] - b[j]) for i in (axis, axis + 2) for j in (axis, axis + 2))


def _distances(boxes: Sequence[Box]) -> Iterator[float]:
  """Yields Euclidean distances of centres and Euclidean gaps."""
  for a, b in itertools.combinations(boxes, 2):
    yield from (math.hypot(*offsets(a, b)), math.hypot(*gaps(a, b)))
