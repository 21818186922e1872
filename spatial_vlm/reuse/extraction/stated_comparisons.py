"""Checks the comparisons of an instruction on the boxes of the chain that it comes from."""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from spatial_vlm.answers import Box

_SIDE = r"(?P<{0}>[XY])(?:'s)?(?P<{0}role>(?: [a-z]{{2,}}){{0,2}})"
_KEY = r"(?: (?P<{0}key>[xywh]))?"
_COMPARISON = re.compile(
  rf"\b{_SIDE.format('a')}{_KEY.format('a')}\s*(?P<sign>[<>])\s*{_SIDE.format('b')}{_KEY.format('b')}(?![\w'])"
)
_EDGES = {"left": 0, "right": 2, "top": 1, "upper": 1, "bottom": 3, "lower": 3}
"""Word of an edge → its index in a box."""


class _Side(NamedTuple):
  letter: str
  role: str
  key: str


def false_comparison(instruction: str, boxes: Mapping[str, Box]) -> str:
  """Returns the first comparison of an instruction that does not hold for the boxes of X and Y; "" without one.

  A comparison that cannot be read, or whose object has no box, is taken to hold.

  >>> boxes = {"X": (600, 0, 700, 90), "Y": (100, 0, 200, 90)}
  >>> false_comparison("yes when X centre x < Y centre x", boxes)
  'X centre x < Y centre x'
  >>> false_comparison("yes when X's left edge > Y's right edge", boxes)
  ''
  """
  for text, left, sign, right in _comparisons(instruction):
    a, b = (_value(side, boxes) for side in (left, right))
    if a is not None and b is not None and not (a < b if sign == "<" else a > b):
      return text
  return ""


def _comparisons(instruction: str) -> Iterator[tuple[str, _Side, str, _Side]]:
  for match in _COMPARISON.finditer(instruction):
    keys = match["akey"] or match["bkey"] or "", match["bkey"] or match["akey"] or ""
    sides = (_Side(match[n], match[f"{n}role"], key) for n, key in zip("ab", keys, strict=True))
    left, right = sides
    yield match[0], left, match["sign"], right


def _value(side: _Side, boxes: Mapping[str, Box]) -> float | None:
  """Returns the number that one side names; None for one that cannot be read."""
  if side.letter not in boxes:
    return None
  box, words = boxes[side.letter], side.role.split()
  edges = [_EDGES[word] for word in words if word in _EDGES]
  if edges:
    return box[edges[0]] if side.key in ("", "xyxy"[edges[0]]) else None
  if words and not {*words} <= {"centre", "center"}:
    return None
  sizes = {"w": box[2] - box[0], "h": box[3] - box[1]}
  centres = {"x": (box[0] + box[2]) / 2, "y": (box[1] + box[3]) / 2}
  return (sizes | centres).get(side.key)
