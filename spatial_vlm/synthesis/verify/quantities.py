"""The numbers of a Reasoning step, held against the boxes that they have to come from.

A coordinate said of one object (`cat centre x=260`) has to be an edge or the centre of its box. One that is said of
no object may be any object's, and other quantities may be sizes of any object, or distances, gaps and overlaps of any
two. What is compared has to compare as it is written.
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
"""Keys of sizes, and the axes along which they are measured."""
_FRAME = {0, 500, 1000}
"""Edges and middle of the image."""
_COUNT = 10
"""Up to here, a number without a key may count things."""
_CLAUSE = re.compile(r"(?:[^;.]|\.(?!\s|$))+")
_LENGTHS = re.compile(
  r"\b(?:apart|away|between|by|differ\w*|distan\w*|gaps?|long|offsets?|outside|over(?:hang|lap)\w*|separat\w*|units"
  r"|wide|tall|width|height)\b",
  re.IGNORECASE,
)
"""Words of a clause in which x=… and y=… may be lengths rather than places."""
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
"""Ways to write keys and comparisons, and the one that is read."""


def first_fault(reasoning: str, objects: Iterable[tuple[str, Box]], tolerance: float) -> str | None:
  """The first number that does not follow from the named boxes, or comparison that does not hold; None without any.

  `tolerance` is in units of the boxes; a rounded centre is off by less than 1.
  """
  for spelling, plain in _SPELLINGS:
    reasoning = spelling.sub(plain, reasoning)
  boxes = _named(objects)
  rest, faults = _without_quoted_boxes(reasoning, boxes)
  clauses = (match[0] for match in _CLAUSE.finditer(rest))
  return next(itertools.chain(faults, _clause_faults(clauses, boxes, tolerance)), None)


def _named(objects: Iterable[tuple[str, Box]]) -> dict[str, Box]:
  """Boxes by name in small letters, and by the last word of a name where no other ends in it: a dining table is "the
  table" too."""
  boxes: dict[str, Box] = {}
  for name, box in objects:
    boxes.setdefault(name.casefold(), box)
  heads = collections.Counter(name.split()[-1] for name in boxes if name.strip())
  short = {name.split()[-1]: box for name, box in boxes.items() if name.strip()}
  return {head: box for head, box in short.items() if heads[head] == 1} | boxes


def _without_quoted_boxes(text: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  """The text without boxes in brackets, and those among them that are no box of the object named before them."""
  faults = []
  pattern = re.compile(
    rf"(?:({any_of(boxes)}) )?[\[(]\s*(-?\d+(?:(?:\s*,\s*|\s+)-?\d+){{3}})\s*[\])]", re.IGNORECASE
  )
  for name, numbers in pattern.findall(text):
    box = tuple(map(int, re.findall(r"-?\d+", numbers)))
    meant = [boxes[name.casefold()]] if name else boxes.values()
    if box not in meant:
      faults.append(f"{name or 'no object'} has the box {list(box)}")
  return pattern.sub(r"\1", text), faults


def _clause_faults(
  clauses: Iterable[str], boxes: Mapping[str, Box], tolerance: float
) -> Iterator[str]:
  said: set[tuple[str, float, str]] = set()
  for clause in clauses:
    numbers = list(read_numbers(clause, boxes))
    pairs = list(compared(numbers, clause))
    for left, sign, right in pairs:
      # Without keys, "=" is the end of a calculation.
      if (sign != "=" or (left.key and right.key)) and not HOLDS[sign](left.value, right.value):
        yield f"{_text(left)} {sign} {_text(right)} does not hold"
    sides = {number.start for left, _, right in pairs for number in (left, right)}
    for number in numbers:
      owner = _owner(number, clause, boxes, number.start in sides)
      whose = owner if _is_close(owner, number, clause) else ""
      known = (number.key, number.value, whose) in said or _is_no_measure(number, clause)
      found = known or any(
        abs(number.value - value) <= tolerance
        for value in _possible(number.key.lower(), clause, boxes, owner)
      )
      if not found:
        yield f"{_text(number)} is nothing of {owner or 'any box'}"
      said |= {(number.key, number.value, whose) for whose in (owner, "")}


def _text(number: Number) -> str:
  return f"{number.key}={number.value}" if number.key else str(number.value)


def _owner(number: Number, clause: str, boxes: Iterable[str], is_compared: bool) -> str:
  """The object whose place the number is said to be; "" when that is open, as in "…; x=260 < x=560"."""
  said_after = re.match(
    rf"\)?\s*(?:\(|for |of )\s*(?:the |an? )?({any_of(boxes)})", clause[number.end :], re.IGNORECASE
  )
  owner = said_after[1] if said_after else number.owner
  return owner.casefold() if said_after or number.named or not is_compared else ""


def _is_close(owner: str, number: Number, clause: str) -> bool:
  """Whether the number is said right after its owner, as in "the cat's centre is x=260"."""
  before = clause[: number.start].casefold()
  return bool(
    owner and re.search(rf"\b{re.escape(owner)}(?:['’]s?)?(?: [a-z]+){{0,3}} \(?$", before)
  )


def _is_no_measure(number: Number, clause: str) -> bool:
  return not number.key and (number.value <= _COUNT or clause[number.end :].startswith("%"))


def _possible(key: str, clause: str, boxes: Mapping[str, Box], owner: str) -> Iterator[float]:
  """What a number may be that is written as `key=…` in the clause."""
  own = [boxes[owner]] if owner else list(dict.fromkeys(boxes.values()))
  every = list(dict.fromkeys(boxes.values()))
  if key in ("x", "y"):
    axis = "xy".index(key)
    yield from _places(own, axis)
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
        yield from _places(every, axis)


def _places(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  for box in boxes:
    low, high = box[axis], box[axis + 2]
    yield from (low, high, (low + high) / 2)


def _sizes(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  return (box[axis + 2] - box[axis] for box in boxes)


def _lengths(boxes: Sequence[Box], axis: int) -> Iterator[float]:
  """Along one axis: between centres and between edges, free space, what is covered twice, what juts out."""
  for a, b in itertools.permutations(boxes, 2):
    low, high = max(a[axis], b[axis]), min(a[axis + 2], b[axis + 2])
    yield from (offsets(a, b)[axis], gaps(a, b)[axis], overhangs(a, b)[axis], max(0, high - low))
    yield from (abs(a[i] - b[j]) for i in (axis, axis + 2) for j in (axis, axis + 2))


def _distances(boxes: Sequence[Box]) -> Iterator[float]:
  for a, b in itertools.combinations(boxes, 2):
    yield from (math.hypot(*offsets(a, b)), math.hypot(*gaps(a, b)))
