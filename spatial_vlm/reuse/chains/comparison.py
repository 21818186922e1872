"""A comparison as data: quantities of objects with a sign between them, and the one way in which each is written.

However a chain words it, "the dog's centre (x=690) lies to the right of the refrigerator's x=395" is the inequality
`dog centre x=690 > refrigerator centre x=395`. Behaviors and short answers are rendered from this data and never copied
from a text, so that no word of a sentence can be left over in them.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from spatial_vlm.data.measurements import HOLDS

BLANK = "\0"
"""Stands for a number that belongs to no object in a masked comparison."""
PAIR_KEYS = ("gap", "d", "overlap", "overhang")
"""Keys of the quantities of two objects: free space, distance of centres, common part, part outside the other."""
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "="}
_ROLES = ("centre", "left edge", "top edge", "right edge", "bottom edge")
_KEYS = ("x", "y", "w", "h")


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A number with what it measures: a position or size of one object, a measure of two objects, or a threshold."""

  value: float
  """An int if it is written as one."""
  key: str = ""
  """"x" or "y" of a position, "w", "h" or "area" of a size, one of PAIR_KEYS, or "" of a plain number."""
  role: str = ""
  """Which position ("centre", "left edge"), or the axis of a measure of two objects ("horizontal")."""
  owner: str = ""
  """The measured object; "" for a threshold."""
  other: str = ""
  """The second object of a measure of two objects."""

  @property
  def owners(self) -> tuple[str, ...]:
    return tuple(filter(None, (self.owner, self.other)))


@dataclasses.dataclass(frozen=True)
class Inequality:
  """Two compared quantities; a measure of two objects may also stand alone, with sign "" and no right side."""

  left: Quantity
  sign: str = ""
  right: Quantity | None = None

  @property
  def sides(self) -> tuple[Quantity, ...]:
    return (self.left,) if self.right is None else (self.left, self.right)

  @property
  def holds(self) -> bool:
    return self.right is None or HOLDS[self.sign](self.left.value, self.right.value)

  def oriented(self, subject: str) -> "Inequality":
    """Returns the same inequality: subject on the left, a threshold on the right, a width before a height."""
    if self.right is None:
      return self
    is_turned = (
      not self.left.owner
      or (self.right.owner == subject != self.left.owner)
      or (self.left.key == "h" and self.right.key == "w" and self.left.owner == self.right.owner)
    )
    return Inequality(self.right, FLIPPED[self.sign], self.left) if is_turned else self

  @property
  def order(self) -> tuple[int, int]:
    """Place among other inequalities: by the key, then by the role of the left side."""
    key, role = self.left.key, self.left.role
    return (
      _KEYS.index(key) if key in "xy" and key else len(_KEYS),
      _ROLES.index(role) if role in _ROLES else 0,
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The inequalities that a chain ends in; all hold together, or (`joiner` "or") at least one is meant."""

  inequalities: tuple[Inequality, ...]
  joiner: str = ", "

  @property
  def holds(self) -> bool:
    """Whether every inequality is true by its own numbers."""
    return all(inequality.holds for inequality in self.inequalities)

  @property
  def owners(self) -> tuple[str, ...]:
    """All objects that are compared."""
    quantities = (q for inequality in self.inequalities for q in inequality.sides)
    return tuple(dict.fromkeys(owner for q in quantities for owner in q.owners))

  @property
  def with_names(self) -> str:
    """The comparison with objects and numbers: `red circle x=160 < blue square x=640`."""

    def number(q: Quantity, owner: str) -> str:
      role = "" if q.role == "centre" else q.role
      return _joined(owner, role, f"{q.key}={q.value}" if q.key else str(q.value))

    return self._rendered(lambda name: name, number)

  def masked(self, letters: Mapping[str, str]) -> str:
    """Returns the comparison without objects and numbers: `X centre x < Y centre x`.

    A threshold leaves its key and a BLANK. `letters` maps each (casefolded) name to its letter; any other object
    becomes "another object".
    """

    def number(q: Quantity, owner: str) -> str:
      is_loose = not q.owner or self._stands_alone(q)
      key = (f"{q.key}={BLANK}" if q.key else BLANK) if is_loose else q.key
      return _joined(owner, q.role, key)

    return self._rendered(lambda name: letters.get(name.casefold(), "another object"), number)

  @property
  def loose_values(self) -> tuple[float, ...]:
    """Numbers in the order of the BLANKs."""
    quantities = (q for inequality in self.inequalities for q in inequality.sides)
    return tuple(q.value for q in quantities if not q.owner or self._stands_alone(q))

  def _stands_alone(self, quantity: Quantity) -> bool:
    return any(i.right is None and i.left is quantity for i in self.inequalities)

  def _rendered(self, name: Callable[[str], str], number: Callable[[Quantity, str], str]) -> str:
    texts = []
    for inequality in self.inequalities:
      left, *rest = inequality.sides
      texts.append(number(left, " to ".join(map(name, left.owners))))
      for right in rest:
        owner = "" if right.owners == left.owners else " to ".join(map(name, right.owners))
        texts[-1] += f" {inequality.sign} {number(right, owner)}"
    return self.joiner.join(texts)


def combine(inequalities: Iterable[Inequality], subject: str, joiner: str) -> Comparison:
  """Returns the comparison in its one form: each inequality oriented, none twice, in the order of keys and roles."""
  oriented = dict.fromkeys(inequality.oriented(subject) for inequality in inequalities)
  return Comparison(tuple(sorted(oriented, key=lambda i: i.order)), joiner)


def shared_values(values: Sequence[tuple[float, ...]], share: float) -> tuple[float | None, ...]:
  """Returns the number of each BLANK that at least `share` of the chains have (a threshold); None where they differ.

  >>> shared_values([(400, 1), (400, 2), (400, 3), (640, 4)], share=0.7)
  (400, None)
  """
  commonest = (
    collections.Counter(column).most_common(1)[0] for column in zip(*values, strict=True)
  )
  return tuple(value if count >= share * len(values) else None for value, count in commonest)


def fill_blanks(masked: str, values: Iterable[float]) -> str:
  """Fills each BLANK with its number."""
  numbers = iter(values)
  return re.sub(BLANK, lambda _: str(next(numbers)), masked)


def _joined(*words: str) -> str:
  return " ".join(filter(None, words))
