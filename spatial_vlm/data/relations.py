"""VSR's relations: their meta-categories, and exact predicates for the relations that scenes can show.

A predicate is one scalar in the units of the boxes (0–1000 of the image): its *evidence*, positive if the relation
holds and negative if it does not. Between −margin and +margin a scene is ambiguous.
"""

import dataclasses
from collections.abc import Callable

from spatial_vlm.answers import Box

NEAR_DISTANCE = 400
"""Objects whose centres differ by less than this on both axes are near each other, otherwise far."""

_CATEGORIES = {
  "Adjacency": "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to,"
  " at the back of, ahead of, against, at the edge of",
  "Directional": "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across,"
  " across from, through, down from",
  "Orientation": "facing, facing away from, parallel to, perpendicular to",
  "Projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over,"
  " in the middle of",
  "Proximity": "by, close to, near, far from, far away from",
  "Topological": "connected to, detached from, has as a part, part of, contains, within, at, on, in, with,"
  " surrounding, among, consists of, out of, between, inside, outside, touching",
  "Unallocated": "beyond, next to, opposite to, after, enclosed by, congruent",
}

META_CATEGORY: dict[str, str] = {
  relation: category for category, names in _CATEGORIES.items() for relation in names.split(", ")
}
"""Meta-category of every relation of VSR.

VSR's own table lists "among" twice (Topological and Unallocated; the first is kept) and omits "congruent" (one item of
the random dev split), here Unallocated.
"""


def center(box: Box) -> tuple[int, int]:
  """Returns the centre (x, y); exact if width and height are even."""
  x1, y1, x2, y2 = box
  return (x1 + x2) // 2, (y1 + y2) // 2


def size(box: Box) -> tuple[int, int]:
  """Returns width and height."""
  x1, y1, x2, y2 = box
  return x2 - x1, y2 - y1


def offsets(subject: Box, other: Box) -> tuple[int, int]:
  """Returns the distances of the centres along x and y."""
  (sx, sy), (ox, oy) = center(subject), center(other)
  return abs(sx - ox), abs(sy - oy)


def gaps(subject: Box, other: Box) -> tuple[int, int]:
  """Returns the free space between the boxes along x and y; 0 if they meet or overlap on that axis."""
  return (
    max(0, other[0] - subject[2], subject[0] - other[2]),
    max(0, other[1] - subject[3], subject[1] - other[3]),
  )


def overhangs(subject: Box, other: Box) -> tuple[int, int]:
  """Returns how far the subject extends beyond the other box along x and y; 0 if it does not."""
  return (
    max(0, other[0] - subject[0], subject[2] - other[2]),
    max(0, other[1] - subject[1], subject[3] - other[3]),
  )


@dataclasses.dataclass(frozen=True)
class Relation:
  """A relation of VSR that the boxes of two objects decide."""

  name: str
  measure: str
  """Compared quantity: centres on "x" or "y", their distance "d", "gap", "overhang", or the long "axis"."""
  margin: int
  """Least evidence for a verdict, in units; at least two steps of a written coordinate (40)."""
  evidence: Callable[[Box, Box], int]
  """(subject, object) -> units; positive if the relation holds."""

  @property
  def category(self) -> str:
    return META_CATEGORY[self.name]

  def holds(self, subject: Box, other: Box) -> bool | None:
    """Returns True or False; None if the scene is ambiguous."""
    evidence = self.evidence(subject, other)
    return None if abs(evidence) < self.margin else evidence > 0

  def caption(self, subject: str, other: str) -> str:
    """Returns the statement in VSR's grammar."""
    return f"The {subject} is {self.name} the {other}."


def _rightward(subject: Box, other: Box) -> int:
  return center(subject)[0] - center(other)[0]


def _downward(subject: Box, other: Box) -> int:
  return center(subject)[1] - center(other)[1]


def _nearness(subject: Box, other: Box) -> int:
  return NEAR_DISTANCE - max(offsets(subject, other))


_CONTACT_MARGIN = 60


def _contact(subject: Box, other: Box) -> int:
  return -max(gaps(subject, other)) or _CONTACT_MARGIN


def _containment(subject: Box, other: Box) -> int:
  return -max(overhangs(subject, other)) or _CONTACT_MARGIN


def _alignment(subject: Box, other: Box) -> int:
  """Returns the smaller excess of length over thickness; negative if the long axes differ."""
  (sw, sh), (ow, oh) = size(subject), size(other)
  excess = min(abs(sw - sh), abs(ow - oh))
  return excess if (sw > sh) == (ow > oh) else -excess


RELATIONS: dict[str, Relation] = {
  relation.name: relation
  for relation in (
    Relation("left of", "x", 80, lambda s, o: -_rightward(s, o)),
    Relation("right of", "x", 80, _rightward),
    Relation("above", "y", 80, lambda s, o: -_downward(s, o)),
    Relation("below", "y", 80, _downward),
    Relation("near", "d", 60, _nearness),
    Relation("far from", "d", 60, lambda s, o: -_nearness(s, o)),
    Relation("touching", "gap", _CONTACT_MARGIN, _contact),
    Relation("inside", "overhang", _CONTACT_MARGIN, _containment),
    Relation("parallel to", "axis", 120, _alignment),
    Relation("perpendicular to", "axis", 120, lambda s, o: -_alignment(s, o)),
  )
}
