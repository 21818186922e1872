"""The rule of a behavior ("yes when X w > h, Y w > h or X w < h, Y w < h") applied to the boxes of two objects."""

import re

from spatial_vlm.answers import Box
from spatial_vlm.data.measurements import HOLDS
from spatial_vlm.reuse.chains.box_values import box_quantities, pair_values
from spatial_vlm.reuse.chains.comparison import PAIR_KEYS

_SIGN = re.compile(r" (<=|>=|[<>=]) ")
_SIDE = re.compile(
  r"(?:(?P<owner>X to Y|Y to X|X|Y) )?"
  r"(?:(?P<role>centre|(?:left|top|right|bottom) edge|horizontal|vertical) )?"
  rf"(?P<key>[xywh]|area|{'|'.join(PAIR_KEYS)})?(?:(?:^|=)(?P<value>\d+(?:\.\d+)?))?"
)


def rule_holds(rule: str, x: Box, y: Box) -> bool | None:
  """Tells whether one of the rule's alternatives holds for the boxes of X and Y.

  `rule` has no "yes when". None where it names another object, is no rule of comparisons, or depends on how a distance
  is measured (see `pair_values`).
  """
  found = [_all_hold(alternative, x, y) for alternative in rule.split(" or ")]
  return True if True in found else None if None in found else False


def _all_hold(comparison: str, x: Box, y: Box) -> bool | None:
  found = [_holds(inequality, x, y) for inequality in comparison.split(", ")]
  return False if False in found else None if None in found else True


def _holds(inequality: str, x: Box, y: Box) -> bool | None:
  left, *rest = _SIGN.split(inequality)
  side = _SIDE.fullmatch(left)
  if side is None or not side["owner"]:
    return None
  if not rest:  # a measure that stands alone with its value: "X to Y gap=0"
    found = (
      {value == float(side["value"]) for value in _values(side, "", x, y)}
      if side["value"]
      else set()
    )
  else:
    other = _SIDE.fullmatch(rest[1])
    values = _values(other, side["owner"], x, y) if other else set()
    found = {HOLDS[rest[0]](a, b) for a in _values(side, "", x, y) for b in values}
  return found.pop() if len(found) == 1 else None


def _values(side: re.Match[str], owner: str, x: Box, y: Box) -> set[float]:
  """Returns the values that one side may have; `owner` is that of the left side, which a right side may omit."""
  is_threshold = bool(side["value"]) and not side["owner"]
  if is_threshold:
    return {float(side["value"])}
  owner, key, role = side["owner"] or owner, side["key"], side["role"] or ""
  if key in PAIR_KEYS:
    return pair_values(key, role, *((x, y) if owner == "X to Y" else (y, x)))
  box = {"X": x, "Y": y}.get(owner)
  if box is None or not key:
    return set()
  return {q.value for q in box_quantities(owner, box) if (q.key, q.role) == (key, role)}
