"""What comparisons say about relations."""

import pytest

from spatial_vlm.reuse.chains.comparison import Comparison, Inequality, Quantity
from spatial_vlm.reuse.chains.relation_verdict import can_decide, decides


def quantity(text, value):
  """`X left edge x`, `X w`, `X to Y gap` or `d` (a threshold) with a value."""
  *words, key = text.split()
  if words[:3] == ["X", "to", "Y"]:
    return Quantity(value, key, "", "X", "Y")
  return Quantity(value, key, " ".join(words[1:]), words[0] if words else "")


def comparison(text):
  inequalities = []
  for part in text.split(", "):
    for sign in (" < ", " > ", " = "):
      if sign in part:
        a, b = part.split(sign)
        right = Quantity(int(b)) if b.isdigit() else quantity(b, 10)
        inequalities.append(Inequality(quantity(a, 20), sign.strip(), right))
        break
    else:
      name, _, value = part.partition("=")
      inequalities.append(Inequality(quantity(name, int(value))))
  return Comparison(tuple(inequalities))


@pytest.mark.parametrize(
  ("relation", "text", "holds"),
  [
    ("left of", "X centre x < Y centre x", True),
    ("at the left side of", "X left edge x > Y left edge x", False),
    ("left of", "X right edge x < Y left edge x", True),
    ("left of", "X right edge x > Y left edge x", None),
    ("right of", "X left edge x > Y right edge x", True),
    ("above", "X centre y < Y centre y", True),
    ("under", "X centre y < Y centre y", False),
    ("on top of", "X bottom edge y > Y top edge y", None),
    ("near", "X to Y d < 400", True),
    ("near", "X to Y d > 400", False),
    ("far from", "X to Y d > 400", True),
    ("near", "X to Y gap > 0", None),
    ("touching", "X to Y gap=0", True),
    ("touching", "X to Y gap > 0", False),
    ("inside", "X left edge x > Y left edge x, X right edge x < Y right edge x", True),
    ("inside", "X left edge x > Y left edge x, X right edge x > Y right edge x", False),
    ("contains", "X left edge x < Y left edge x, X bottom edge y > Y bottom edge y", True),
    ("contains", "X top edge y > Y top edge y", False),
    ("inside", "X to Y overhang=0", True),
    ("inside", "X to Y overhang=40", False),
    ("parallel to", "X w < X h, Y w < Y h", True),
    ("perpendicular to", "X w < X h, Y w < Y h", False),
    ("perpendicular to", "X w < X h, Y w > Y h", True),
    ("not left of", "X centre x < Y centre x", False),
    ("not left of", "X centre x > Y centre x", True),
    ("not left of", "X right edge x > Y left edge x", None),
    ("not touching", "X to Y gap > 0", True),
    ("behind", "X bottom edge y < Y bottom edge y", None),
    ("not known", "X centre x < Y centre x", None),
  ],
)
def test_comparisons_decide_relations_or_leave_them_open(relation, text, holds):
  assert can_decide(relation, comparison(text))
  assert decides(relation, comparison(text)) is holds


@pytest.mark.parametrize(
  ("relation", "text"),
  [
    ("facing", "X bottom edge y < Y bottom edge y"),
    ("facing away from", "X w < X h"),
    ("toward", "X left edge x < Y left edge x"),
    ("parallel to", "X centre y < Y centre y"),
    ("left of", "X centre y < Y centre y"),
    ("above", "X left edge x < Y left edge x"),
    ("not above", "X left edge x < Y left edge x"),
    ("touching", "X centre x < Y centre x"),
    ("on", "X centre x < Y centre x"),
  ],
)
def test_other_quantities_cannot_decide(relation, text):
  assert not can_decide(relation, comparison(text))


def test_alternatives_leave_a_relation_open():
  either = Comparison(comparison("X centre x < Y centre x").inequalities, " or ")
  assert decides("left of", either) is None
