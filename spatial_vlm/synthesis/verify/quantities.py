"""Checks the numbers of a Reasoning step against the boxes that they must come from.

A coordinate of one object (`cat centre x=260`) must be an edge or the centre of that object's box. A coordinate without
an object may belong to any box; one of a part of an object ("the dog's head") must lie inside its box. Other quantities
may be sizes of any object, or distances, gaps and overlaps of any two. A rounded number ("about 600 units") stands for
what rounds to it. Written comparisons must hold. Shares, multiples and angles have checks of their own, and numbers
that are read from the image (a route, a clock, a count of people) are left out.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from spatial_vlm.answers import Box
from spatial_vlm.data.measurements import (
  HOLDS,
  Number,
  any_of,
  compared,
  owner_after,
  plain_spelling,
  read_numbers,
)
from spatial_vlm.data.relations import NEAR_DISTANCE, gaps, offsets, overhangs, size
from spatial_vlm.synthesis.verify.number_words import with_digits
from spatial_vlm.synthesis.verify.object_parts import part_owner
from spatial_vlm.synthesis.verify.proportions import check_proportions
from spatial_vlm.synthesis.verify.visible_numbers import without_visible_numbers
from spatial_vlm.synthesis.verify.written_values import read_claim

_SIZES = {"w": 0, "width": 0, "h": 1, "height": 1}
"""Keys of sizes → their axis."""
_FRAME = {0, 500, 1000}
"""Edges and middle of the image, in units of 0–1000."""
_FRAME_SIZE = 1000
_NEAR_CHARACTERS = 60
"""So far before a number stands the noun that it measures."""
_MAX_COUNT = 10
"""A number without a key up to this value may be a count of things."""
_LENGTH_BEFORE = re.compile(
  r"\b(?:gap|distance|overlap|space)\b(?: (?:[a-z]+ ){0,4})?(?:is |of |by )?(?:[a-z]+ ){0,2}$|\bby (?:[a-z]+ ){0,2}$",
  re.IGNORECASE,
)
_LENGTH_AFTER = re.compile(
  r" ?(?:units?\b|points\b|apart\b|away\b|(?:further |farther )?to the (?:left|right)\b)"
)
"""Words before and after a number that measures a length, however small."""
_WORLD_UNIT = re.compile(
  r"[ -]?(?:cm|mm|km|m|metres?|meters?|centimet\w+|inch(?:es)?|(?:feet|foot|yards?|miles?)(?= (?:away|apart|from|long"
  r"|wide|tall|high|above|below|behind|off|to)\b))(?![\w/])"
)
_ALONG = (
  re.compile(r"\b(?:horizontal(?:ly)?|width|wide|along x|in x)\b", re.IGNORECASE),
  re.compile(r"\b(?:vertical(?:ly)?|height|tall|high|along y|in y)\b", re.IGNORECASE),
)
"""Words that tell the axis of a length."""
_DIRECTED = re.compile(
  r"(?: units?| points?)?(?: further| farther| more)? (?:(?P<along_x>(?:to the )?(?:left|right)\b)"
  r"|(?:higher|lower|above|below|beneath|under)\b)"
)
"""Words after a number that make it a difference of edges or centres: "30 units to the right of"."""
_SIZE_AFTER = re.compile(r"(?: units?| points?)? (?:wide|tall|high|long|broad)\b")
_VERSUS = re.compile(r" (?:vs\.?|versus|against) ")
"""Words between two numbers that are compared without a sign."""
_CLAUSE = re.compile(r"(?:[^;.]|\.(?!\s|$))+")
_LENGTHS = re.compile(
  r"\b(?:apart|away|between|by|differ\w*|distan\w*|gaps?|long|offsets?|outside|over(?:hang|lap)\w*|separat\w*|units"
  r"|wide|tall|width|height)\b",
  re.IGNORECASE,
)
"""Words of a clause in which x=… and y=… may be lengths instead of positions."""


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
  boxes = _boxes_by_name(objects)
  reasoning = without_visible_numbers(with_digits(reasoning), boxes)
  rest, errors = _without_quoted_boxes(plain_spelling(reasoning), boxes)
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
  parts: set[tuple[str, float]] = set()
  for clause in clauses:
    clause, errors = check_proportions(clause, boxes)
    yield from errors
    numbers = list(read_numbers(clause, boxes))
    comparisons = list(compared(numbers, clause))
    for left, sign, right in comparisons:
      # Without keys, "=" only ends a calculation and compares nothing.
      if (sign != "=" or (left.key and right.key)) and not HOLDS[sign](left.value, right.value):
        yield f"{_text(left)} {sign} {_text(right)} does not hold"
    sides = {number.start for left, _, right in comparisons for number in (left, right)}
    sides |= {
      number.start
      for left, right in itertools.pairwise(numbers)
      if _VERSUS.match(clause, left.end)
      for number in (left, right)
    }
    for number in numbers:
      owner = _owner(number, clause, boxes, number.start in sides)
      if unit := not number.key and _WORLD_UNIT.match(clause, number.end):
        yield f"{number.value}{unit[0]} is a length that no box tells"
        continue
      if _is_of_part(number, clause, boxes, parts):
        parts.add((number.key, number.value))
        continue
      object_name = owner if _is_close(owner, number, clause) else ""
      known = (number.key, number.value, object_name) in seen or _is_count(number, clause)
      claim = read_claim(_before(number, clause), number.value, tolerance)
      found = known or any(
        map(claim.allows, _claimed(number, clause, boxes, owner, claim.is_exact))
      )
      if not found:
        yield f"{_text(number)} matches no quantity of {owner or 'any box'}"
      seen |= {(number.key, number.value, name) for name in (owner, "")}


def _text(number: Number) -> str:
  return f"{number.key}={number.value}" if number.key else str(number.value)


def _owner(number: Number, clause: str, boxes: Iterable[str], is_compared: bool) -> str:
  """Returns the object that the number describes; "" if the clause does not say, as in "x=260 < x=560"."""
  named_after = owner_after(number, clause, boxes)
  owner = named_after or number.owner
  return owner.casefold() if named_after or number.named or not is_compared else ""


def _is_close(owner: str, number: Number, clause: str) -> bool:
  """Tells whether the number follows its owner closely, as in "the cat's centre is x=260"."""
  before = clause[: number.start].casefold()
  return bool(
    owner and re.search(rf"\b{re.escape(owner)}(?:['’]s?)?(?: [a-z]+){{0,3}} \(?$", before)
  )


def _before(number: Number, clause: str) -> str:
  """Returns the text before the number and its key."""
  return re.sub(r"(?:\b[A-Za-z]+=)?\d+(?:\.\d+)?$", "", clause[: number.end])


def _is_count(number: Number, clause: str) -> bool:
  """Tells whether a small number counts things instead of measuring a length."""
  is_length = _LENGTH_AFTER.match(clause, number.end) or _LENGTH_BEFORE.search(
    _before(number, clause)
  )
  return not number.key and number.value <= _MAX_COUNT and not is_length


def _is_of_part(
  number: Number, clause: str, boxes: Mapping[str, Box], parts: set[tuple[str, float]]
) -> bool:
  """Tells whether the coordinate is one of a part and lies inside the box of the part's object."""
  if number.key.lower() not in ("x", "y"):
    return False
  axis = "xy".index(number.key.lower())
  owner = part_owner(number, clause, boxes)
  if owner is None:
    return (number.key, number.value) in parts and not number.named
  owners = [boxes[owner]] if owner else boxes.values()
  return any(box[axis] <= number.value <= box[axis + 2] for box in owners)


def _claimed(
  number: Number, clause: str, boxes: Mapping[str, Box], owner: str, is_exact: bool
) -> Iterator[float]:
  """Yields the values that the number may stand for; words next to it tell the axis and the kind of a length."""
  axis = _axis(number, clause)
  kinds = _kinds(number, clause, is_exact)
  if number.value == _FRAME_SIZE and not number.key:
    yield _FRAME_SIZE
  if kinds:
    for a, b in itertools.combinations(dict.fromkeys(boxes.values()), 2):
      for kind in kinds:
        yield from kind(a, b) if axis is None else (kind(a, b)[axis],)
        if axis is None:
          yield math.hypot(*kind(a, b))
  elif not number.key and _SIZE_AFTER.match(clause, number.end):
    for box in [boxes[number.owner.casefold()]] if number.owner else boxes.values():
      yield from size(box) if axis is None else (size(box)[axis],)
  elif not number.key and (way := _DIRECTED.match(clause, number.end)):
    yield from _directed_lengths(number, clause, boxes, 0 if way["along_x"] else 1)
  elif number.key or (axis is None and is_exact):
    yield from _possible(number.key.lower(), clause, boxes, owner)
  else:
    every = list(dict.fromkeys(boxes.values()))
    yield from () if axis is not None else _distances(every)
    for i in (0, 1) if axis is None else (axis,):
      yield from _lengths(every, i)
      yield from _sizes(every, i)
      yield from _positions(every, i)


def _directed_lengths(
  number: Number, clause: str, boxes: Mapping[str, Box], axis: int
) -> Iterator[float]:
  """Yields the lengths that "N units above" may have.

  Of "y=880, 60 units above the lower edge y=940", only the difference of the coordinates around the number.
  """
  coordinate = rf"\b{'xy'[axis]}=(\d+(?:\.\d+)?)\b"
  before = re.findall(coordinate, _before(number, clause), re.IGNORECASE)
  after = re.match(rf"[^=<>]*?{coordinate}", clause[number.end :], re.IGNORECASE)
  if before and after:
    yield from (abs(float(value) - float(after[1])) for value in before)
    return
  for a, b in itertools.combinations(dict.fromkeys(boxes.values()), 2):
    yield offsets(a, b)[axis]
    yield from (abs(a[i] - b[j]) for i in (axis, axis + 2) for j in (axis, axis + 2))


def _kinds(
  number: Number, clause: str, is_exact: bool
) -> tuple[Callable[[Box, Box], tuple[int, int]], ...]:
  """Returns the functions of two boxes that a gap, or a rounded distance, must come from; () for any."""
  before = _before(number, clause)[-_NEAR_CHARACTERS:]
  if number.key == "gap" or (not number.key and re.search(r"\b(?:gaps?|space)\b", before)):
    return (gaps,)
  is_apart = re.match(r"(?: units?| points?)? apart\b", clause[number.end :])
  is_difference = re.search(r"\b(?:differ\w*|distan\w*)\b", before)
  if number.key or is_exact or not (is_apart or is_difference):
    return ()
  return (offsets,) if re.search(r"\b(?:centres?|centers?)\b", before) else (offsets, gaps)


def _axis(number: Number, clause: str) -> int | None:
  """Returns the axis that the words right after or right before a number without a key name; None without any."""
  if number.key:
    return None
  after = re.match(r"(?: (?!and\b|but\b|while\b)[A-Za-z]+){0,4}", clause[number.end :])
  before = re.search(r"(?:[A-Za-z]+ ){0,7}$", _before(number, clause))
  for words in (after, before):
    found = [axis for axis, names in enumerate(_ALONG) if words and names.search(words[0])]
    if len(found) == 1:
      return found[0]
  return None


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
