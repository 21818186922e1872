"""Reads the Reasoning step of a chain: measurements, then the comparison that decides.

`red circle spans x=100 to x=240, centre x=160; blue square spans x=600 to x=700, centre x=640; x=160 < x=640, so it is
left of it.` A side that names no object or position is traced back to the measurement with the same key and value, or
to the box that has it, and so to its object (red circle) and its role there (centre). The code knows no relation.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

from spatial_vlm.answers import Answer
from spatial_vlm.data.measurements import owner_after, read_numbers
from spatial_vlm.reuse.chains.box_values import TOLERANCE, box_quantities, pair_values
from spatial_vlm.reuse.chains.chain_objects import Objects, reasoning
from spatial_vlm.reuse.chains.comparison import PAIR_KEYS, Comparison, Inequality, Quantity, combine
from spatial_vlm.reuse.chains.comparison_words import role_before
from spatial_vlm.reuse.chains.reasoning_patterns import (
  Side,
  Written,
  groups,
  last_clause,
  written_comparisons,
  written_measures,
)

_RANGE = re.compile(r" ?(?:to|–|-|and|through|until) ?(?:[xy]=)?", re.IGNORECASE)
_SAME_ROLE = re.compile(r"(?:,| and|, and) ", re.IGNORECASE)


def read_comparison(answer: Answer, names: Iterable[str] = ()) -> Comparison | None:
  """Returns the comparison that the Reasoning of a chain ends in; None if it ends in none that can be read."""
  found = read_comparisons(answer, names)
  return found[-1] if found else None


def read_comparisons(answer: Answer, names: Iterable[str] = ()) -> list[Comparison]:
  """Returns the comparisons of a chain in the order of its Reasoning.

  Objects are recognized by `names` (the statement's subject and object) and by the boxes of the Caption. Without any
  comparison, a measure of two objects in the last clause counts ("gap=0", "red circle to blue square gap=0"). A side
  that cannot be traced to an object makes its comparison unreadable.
  """
  objects = Objects.of(answer, names)
  text = reasoning(answer, objects)
  written = written_comparisons(text)
  if not written:
    clause = last_clause(text)
    before = text[: text.rindex(clause)]
    alone = written_measures(clause)[-1:]
    return [c for w in alone if (c := _read([w], ", ", before or clause, objects))]
  read = (
    _read(group, joiner, text[: group[0].start], objects) for group, joiner in groups(text, written)
  )
  return [comparison for comparison in read if comparison]


def measured(text: str, objects: Objects) -> list[Quantity]:
  """Returns what a text says about single objects: `dog spans x=580 to x=800, with its centre at x=690`."""
  numbers = list(read_numbers(text, objects.tokens))
  found: list[Quantity] = []
  role, end, last = "", 0, None
  for number in numbers:
    between = text[end : number.start]
    word = f"{between}{number.role} " if number.role else between
    is_end = last is not None and last.key == number.key and _RANGE.fullmatch(between)
    named, key = role_before(re.split(r"[;.]\s|\d", word)[-1])
    if is_end:
      role = {"x": "right edge", "y": "bottom edge"}.get(number.key, "")
      if found and found[-1].key == number.key and not found[-1].role:
        start = {"x": "left edge", "y": "top edge"}.get(number.key, "")
        found[-1] = dataclasses.replace(found[-1], role=start)
    elif named or key or not (_SAME_ROLE.fullmatch(between) and role == "centre"):
      role = named
    owner, end, last = (
      objects.name(owner_after(number, text, objects.tokens) or number.owner),
      number.end,
      number,
    )
    key = {"width": "w", "height": "h"}.get(number.key, number.key) or key
    if owner and key:
      found.append(Quantity(number.value, key, role, owner))
  return found


def measured_outside_comparisons(answer: Answer, objects: Objects) -> list[Quantity]:
  """Returns what the Reasoning says about single objects in other words than its comparisons."""
  text = reasoning(answer, objects)
  for written in reversed(written_comparisons(text)):
    text = f"{text[: written.start]}; {text[written.end :]}"
  return measured(text, objects)


def is_supported(
  quantity: Quantity, objects: Objects, measurements: Sequence[Quantity]
) -> bool | None:
  """Tells whether an object's quantity is that of its box or, without a box, a measured one; None if nothing says."""
  if not quantity.owner:
    return True
  boxes = [objects.box(owner) for owner in quantity.owners]
  if quantity.other:
    a, b = boxes
    if a is None or b is None:
      return None
    values = pair_values(quantity.key, quantity.role, a, b)
    return any(abs(value - quantity.value) < TOLERANCE for value in values)
  (box,) = boxes
  known = [*box_quantities(quantity.owner, box)] if box else measurements
  known = [q for q in known if q.owner == quantity.owner and _agree(q.key, quantity.key)]
  return any(_matches(q, quantity) for q in known) if known else None


def _read(
  group: Sequence[Written], joiner: str, before: str, objects: Objects
) -> Comparison | None:
  measurements = measured(before, objects)
  inequalities = [_inequality(written, measurements, objects) for written in group]
  if not all(inequalities):
    return None
  subject = objects.names[0] if objects.names else ""
  return combine(filter(None, inequalities), subject, joiner)


def _inequality(
  written: Written, measurements: Sequence[Quantity], objects: Objects
) -> Inequality | None:
  sides = [side for side in (written.left, written.right) if side]
  if any(side.key in PAIR_KEYS for side in sides):
    return _of_pair(written, objects)
  sources = [_sources(side, measurements, objects) for side in sides]
  pairs = [(a, b) for a, b in itertools.product(*sources) if _comparable(a, b)]
  statement = objects.names[:2]

  def strangeness(pair: tuple[Quantity, Quantity]) -> tuple[bool, bool, int]:
    a, b = pair
    is_odd = (a.owner == b.owner) == (a.key == b.key)
    return is_odd, a.role != b.role, sum(q.owner not in statement for q in pair)

  if not pairs:
    return None
  left, right = min(pairs, key=strangeness)
  return Inequality(left, written.sign, right)


def _of_pair(written: Written, objects: Objects) -> Inequality | None:
  """Returns the inequality of a measure of two objects, and a threshold if there is one."""
  pair = objects.names[:2]
  if len(pair) < 2:
    return None

  def measure(side: Side) -> Quantity:
    return Quantity(side.value, side.key, side.role, *pair)

  def threshold(side: Side) -> Quantity:
    return Quantity(side.value, side.key)

  if written.right is None:
    return Inequality(measure(written.left))
  sides = (written.left, written.right)
  measures = [
    i for i, side in enumerate(sides) if side.key in PAIR_KEYS and side.role != "threshold"
  ]
  if len(measures) == 2:  # "d=580 > d=400": the one that the boxes have is measured
    fitting = [i for i in measures if is_supported(measure(sides[i]), objects, ())]
    measures = fitting or measures
  if not measures or any(i not in measures and side.owner for i, side in enumerate(sides)):
    return None
  left, right = (
    measure(side) if i == measures[0] else threshold(side) for i, side in enumerate(sides)
  )
  return Inequality(left, written.sign, right)


def _sources(side: Side, measurements: Sequence[Quantity], objects: Objects) -> list[Quantity]:
  """Returns the quantities that a side may mean: measured ones before those of boxes.

  A side whose object is named but has no such quantity keeps what the text says; one without an object has none.
  """
  wanted = Quantity(side.value, side.key, side.role, objects.name(side.owner))
  boxed = [
    q for name in objects.names if (box := objects.box(name)) for q in box_quantities(name, box)
  ]
  found = [
    dataclasses.replace(q, role=q.role or _role(q, boxed), value=side.value)
    for known in (measurements, boxed)
    for q in known
    if _matches(q, wanted) and wanted.owner in ("", q.owner)
  ]
  if found or not wanted.owner:
    return list(dict.fromkeys(found))
  return [wanted] if wanted.key else []


def _role(quantity: Quantity, boxed: Sequence[Quantity]) -> str:
  same = (q for q in boxed if q.owner == quantity.owner and _matches(q, quantity))
  return next((q.role for q in same), "")


def _matches(known: Quantity, wanted: Quantity) -> bool:
  """Tells whether a known quantity has the value of `wanted`, and its key and role as far as both say them."""
  return (
    abs(known.value - wanted.value) < TOLERANCE
    and _agree(known.key, wanted.key)
    and _agree(known.role, wanted.role)
  )


def _agree(a: str, b: str) -> bool:
  return not a or not b or a == b


def _comparable(a: Quantity, b: Quantity) -> bool:
  """Tells whether two quantities have one unit: positions on one axis, or sizes."""
  return a.key == b.key or {a.key, b.key} == {"w", "h"}
