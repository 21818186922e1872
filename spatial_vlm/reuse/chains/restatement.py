"""Comparisons written anew from the boxes of a chain, where its own numbers or signs are wrong.

A policy often reaches the right verdict from right boxes through wrong arithmetic ("offsets x=580" for 520). A short
answer that is learned from such a chain states what its boxes say.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from spatial_vlm.answers import Box
from spatial_vlm.data.relations import gaps, offsets, overhangs
from spatial_vlm.reuse.chains.box_values import box_quantities
from spatial_vlm.reuse.chains.chain_check import (
  NO_CHAIN,
  OTHER_STATEMENT,
  OTHER_VERDICT,
  read_chain,
)
from spatial_vlm.reuse.chains.comparison import Comparison, Inequality, Quantity
from spatial_vlm.reuse.chains.relation_verdict import decides
from spatial_vlm.reuse.chains.solutions import Solution

_PAIR_MEASURES = {"gap": gaps, "d": offsets, "overhang": overhangs}
"""Key → the measure along both axes; its larger value counts, as in scenes."""


def comparison_templates(solutions: Iterable[Solution]) -> dict[str, Comparison]:
  """Returns relation → the most frequent comparison of its right chains, about objects named X and Y."""
  found: dict[str, collections.Counter[Comparison]] = collections.defaultdict(collections.Counter)
  for solution in solutions:
    if comparison := read_chain(solution).comparison:
      letters = dict(zip(map(str.casefold, solution.names), "XY", strict=True))
      found[solution.relation][_without_values(comparison, letters)] += 1
  return {relation: counts.most_common(1)[0][0] for relation, counts in found.items()}


def restated(solution: Solution, template: Comparison) -> Comparison | None:
  """Returns the template's comparison with the numbers of the boxes in the solution's chain.

  None unless the chain reaches the label, has boxes of both objects, and the comparison decides for the label.
  """
  reading = read_chain(solution)
  if reading.answer is None or reading.reason in (NO_CHAIN, OTHER_VERDICT, OTHER_STATEMENT):
    return None
  boxes = {name.casefold(): box for name, box in reading.answer.boxes.items()}
  if any(name.casefold() not in boxes for name in solution.names):
    return None
  names = dict(zip("XY", solution.names, strict=True))
  inequalities = [_measured(i, names, boxes) for i in template.inequalities]
  if None in inequalities:
    return None
  comparison = dataclasses.replace(template, inequalities=tuple(filter(None, inequalities)))
  is_decided = decides(solution.relation, comparison) == bool(solution.label)
  return comparison if is_decided else None


def _without_values(comparison: Comparison, letters: Mapping[str, str]) -> Comparison:
  """Returns the comparison of X and Y with thresholds and no other number or sign, so that equal kinds are equal."""

  def plain(q: Quantity) -> Quantity:
    owner, other = (letters.get(name.casefold(), name) for name in (q.owner, q.other))
    return dataclasses.replace(q, owner=owner, other=other, value=0 if q.owner else q.value)

  def kind(i: Inequality) -> Inequality:
    return Inequality(plain(i.left), "<" if i.right else "", plain(i.right) if i.right else None)

  return dataclasses.replace(comparison, inequalities=tuple(map(kind, comparison.inequalities)))


def _measured(
  inequality: Inequality, names: Mapping[str, str], boxes: Mapping[str, Box]
) -> Inequality | None:
  """Returns the inequality with the values of the boxes and the sign between them; None if they do not give one."""
  left = _quantity(inequality.left, names, boxes)
  if left is None or inequality.right is None:
    return left and Inequality(left)
  right = _quantity(inequality.right, names, boxes)
  if right is None:
    return None
  sign = "<" if left.value < right.value else ">" if left.value > right.value else "="
  return Inequality(left, sign, right)


def _quantity(q: Quantity, names: Mapping[str, str], boxes: Mapping[str, Box]) -> Quantity | None:
  """Returns a quantity with its value; a threshold stays as it is."""
  if not q.owner:
    return q
  named = dataclasses.replace(q, owner=names[q.owner], other=names.get(q.other, ""))
  box = boxes[named.owner.casefold()]
  if q.other:
    if q.role or q.key not in _PAIR_MEASURES:
      return None
    value = max(_PAIR_MEASURES[q.key](box, boxes[named.other.casefold()]))
    return dataclasses.replace(named, value=value)
  for measured in box_quantities(named.owner, box):
    if (measured.key, measured.role) == (q.key, q.role):
      return dataclasses.replace(named, value=_as_written(measured.value))
  return None


def _as_written(value: float) -> float:
  return int(value) if value == int(value) else value
