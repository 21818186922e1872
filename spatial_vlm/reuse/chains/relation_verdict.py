"""What a comparison says about the relation of its two objects, X and Y in their statement "X … Y".

Only as much as needed to notice that a chain's comparison contradicts its conclusion, or cannot decide it: behaviors
are read from chains, not from this table. Relations without an entry are left open.
"""

from collections.abc import Iterable

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.reuse.chains.comparison import Comparison, Inequality

_NOT = "not "
_SIDES = {
  **{relation: ("x", "<") for relation in ("left of", "at the left side of")},
  **{relation: ("x", ">") for relation in ("right of", "at the right side of")},
  **{relation: ("y", "<") for relation in ("above", "over", "on top of")},
  **{relation: ("y", ">") for relation in ("below", "under", "beneath", "down from")},
}
"""Relation → axis, and the sign of X's position to Y's if it holds."""
_DISTANCES = {"near": "<", "close to": "<", "far from": ">", "far away from": ">"}
"""Relation → the sign of the distance to a threshold if it holds."""
_INSIDE = {"inside": True, "within": True, "in": True, "enclosed by": True}
_INSIDE |= {"contains": False, "surrounding": False}
"""Relation → whether X is the inner object."""
_ALIGNED = {"parallel to": True, "perpendicular to": False}
"""Relation → whether the long sides of X and Y run along one axis."""
_DIRECTED = ("Orientation", "Directional")
"""Meta-categories of relations that positions cannot decide: which way an object faces or moves is only seen."""
_ONE_SIDE = {
  *(("right edge", "<", "left edge"), ("left edge", ">", "right edge")),
  *(("bottom edge", "<", "top edge"), ("top edge", ">", "bottom edge")),
}
"""Comparisons of different edges that leave X entirely on one side of Y."""
_INNER = {"left edge": ">", "top edge": ">", "right edge": "<", "bottom edge": "<"}
"""Edge → the sign of X's edge to Y's if X is inside."""


def can_decide(relation: str, comparison: Comparison) -> bool:
  """Tells whether quantities of this kind can decide the relation; True for a relation that is not known.

  A relation and its negation ("not left of") are decided by the same quantities.
  """
  relation = relation.removeprefix(_NOT)
  keys = {inequality.left.key for inequality in comparison.inequalities}
  if relation in _ALIGNED:
    return keys <= {"w", "h"}
  if relation in _SIDES:
    return bool(keys & {_SIDES[relation][0], "gap"})
  if all(i.left.key == "x" and i.left.role == "centre" for i in comparison.inequalities):
    return relation not in META_CATEGORY  # Centres along x only tell left from right.
  return META_CATEGORY.get(relation) not in _DIRECTED


def decides(relation: str, comparison: Comparison) -> bool | None:
  """Returns whether the relation holds by the comparison; None where the comparison leaves it open."""
  if relation.startswith(_NOT):
    holds = decides(relation.removeprefix(_NOT), comparison)
    return None if holds is None else not holds
  inequalities = comparison.inequalities
  if comparison.joiner == " or ":
    return None
  if relation in _SIDES:
    axis, sign = _SIDES[relation]
    return _all(_side(i) == sign for i in inequalities if i.left.key == axis and _side(i))
  if relation in _DISTANCES:
    return _all(i.sign[0] == _DISTANCES[relation] for i in inequalities if _is_threshold(i))
  if relation == "touching":
    return _all(
      i.left.value == 0 for i in inequalities if i.left.key == "gap" and not _is_threshold(i)
    )
  if relation in _INSIDE:
    return _all(w for i in inequalities if (w := _is_within(i, _INSIDE[relation])) is not None)
  if relation in _ALIGNED and len(inequalities) == 2:
    first, second = (i.sign for i in inequalities)
    return (first == second) == _ALIGNED[relation]
  return None


def _side(inequality: Inequality) -> str:
  """Returns the sign of X's position to Y's; "" if different edges leave it open."""
  left, right = inequality.left, inequality.right
  if right is None or not right.owner or inequality.sign == "=":
    return ""
  is_clear = left.role == right.role or (left.role, inequality.sign, right.role) in _ONE_SIDE
  return inequality.sign[0] if is_clear else ""


def _is_threshold(inequality: Inequality) -> bool:
  """Tells whether a distance is compared with a threshold above 0."""
  left, right = inequality.left, inequality.right
  is_distance = left.key in ("d", "gap") and bool(left.other)
  return is_distance and right is not None and right.value > 0 and inequality.sign != "="


def _is_within(inequality: Inequality, is_subject: bool) -> bool | None:
  """Tells whether X lies within Y at this edge (or Y within X); None for anything else than equal edges."""
  left, right, sign = inequality.left, inequality.right, inequality.sign
  if left.key == "overhang":
    return left.value == 0 if is_subject else None
  if right is None or left.role != right.role or left.role not in _INNER or not right.owner:
    return None
  return sign == "=" or (sign[0] == _INNER[left.role]) == is_subject


def _all(found: Iterable[bool]) -> bool | None:
  values = list(found)
  return all(values) if values else None
