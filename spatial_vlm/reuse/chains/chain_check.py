"""Checks the comparisons of a chain: true by their numbers, with the right owners, and in line with the verdict.

A chain that passes has a comparison that behaviors and short answers can be made of. One that cannot be read is left,
with the reason; one that is wrong must not be learned from.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable

from spatial_vlm import answers
from spatial_vlm.data.measurements import any_of
from spatial_vlm.reuse.chains.chain_objects import Objects
from spatial_vlm.reuse.chains.comparison import Comparison
from spatial_vlm.reuse.chains.reasoning import (
  is_supported,
  measured_outside_comparisons,
  read_comparisons,
)
from spatial_vlm.reuse.chains.relation_verdict import can_decide, decides
from spatial_vlm.reuse.chains.solutions import Solution

NO_CHAIN = "no chain"
OTHER_VERDICT = "verdict differs from the label"
OTHER_STATEMENT = "does not name the statement's objects"
UNREADABLE = "no comparison that can be read"
FALSE = "comparison is false"
WRONG_NUMBER = "number is not that of its object"
UNMEASURED = "number of an object without a box or measurement"
OTHER_OBJECTS = "compares other objects than the statement's two"
UNDECIDED = "comparison does not decide the relation"
CONTRADICTS = "comparison contradicts the verdict"
WRONG = frozenset((NO_CHAIN, OTHER_VERDICT, OTHER_STATEMENT, FALSE, WRONG_NUMBER, CONTRADICTS))
"""Reasons why nothing may be learned from a chain; for the others, only its comparison is not used."""


@dataclasses.dataclass(frozen=True)
class Reading:
  """What a chain gives: its comparison, or the reason why it has none that may be used."""

  answer: answers.Answer | None
  comparison: Comparison | None
  reason: str = ""
  """"" for a chain that is read; else one of the reasons above."""


@functools.lru_cache(
  maxsize=1 << 15
)  # extraction, report and training examples read the same chains
def read_chain(solution: Solution) -> Reading:
  """Reads and checks a solution's chain.

  The comparison is the last one that speaks about the relation. Every comparison in the chain must be true and have
  the numbers of its objects, in their boxes or, for an object without one, as the Reasoning measured them before.
  """
  answer = answers.STATEMENT.parse(solution.text)
  if answer is None or answer.form != "chain":
    return Reading(None, None, NO_CHAIN)
  if answer.verdict != solution.label:
    return Reading(answer, None, OTHER_VERDICT)
  return check_chain(answer, solution.names, solution.relation)


def sound_chain(solution: Solution) -> answers.Answer | None:
  """Returns the chain of a solution if it reaches the label and no comparison in it is wrong; it need not have one."""
  reading = read_chain(solution)
  return None if reading.reason in WRONG else reading.answer


def check_chain(answer: answers.Answer, names: tuple[str, ...], relation: str) -> Reading:
  """Reads and checks the comparisons of a chain (see `read_chain`) about a relation of two named objects."""
  text = " ".join(answer.steps.values())
  if not all(re.search(any_of([name]), text, re.IGNORECASE) for name in names if name):
    return Reading(answer, None, OTHER_STATEMENT)
  comparisons = read_comparisons(answer, names)
  if not comparisons:
    return Reading(answer, None, UNREADABLE)
  objects = Objects.of(answer, names)
  faults = [fault for c in comparisons if (fault := _fault(c, answer, objects))]
  if faults:
    return Reading(answer, None, next((fault for fault in faults if fault in WRONG), faults[0]))
  reason = UNDECIDED
  for comparison in reversed(comparisons):
    if {*comparison.owners} != {*objects.names[:2]}:
      reason = OTHER_OBJECTS
    elif not can_decide(relation, comparison):
      reason = UNDECIDED
    elif decides(relation, comparison) not in (None, bool(answer.verdict)):
      return Reading(answer, None, CONTRADICTS)
    else:
      return Reading(answer, comparison)
  return Reading(answer, None, reason)


@dataclasses.dataclass(frozen=True)
class ReadingReport:
  """How many chains are read, and why the others are left."""

  read: int
  left: collections.Counter[str]
  """Reason → chains."""

  def __str__(self) -> str:
    total = self.read + self.left.total()
    why = "; ".join(f"{count} {reason}" for reason, count in self.left.most_common())
    return f"{self.read} of {total} chains read{f', left: {why}' if why else ''}"


def reading_report(solutions: Iterable[Solution]) -> ReadingReport:
  """Counts the chains that `read_chain` reads, and the reasons why it leaves the others."""
  reasons = collections.Counter(read_chain(solution).reason for solution in solutions)
  return ReadingReport(reasons.pop("", 0), reasons)


def _fault(comparison: Comparison, answer: answers.Answer, objects: Objects) -> str:
  """Returns why a comparison is wrong or cannot be checked; "" if it is right."""
  if not comparison.holds:
    return FALSE
  is_boxed = all(map(objects.box, comparison.owners))
  measurements = [] if is_boxed else measured_outside_comparisons(answer, objects)
  found = {
    is_supported(quantity, objects, measurements)
    for inequality in comparison.inequalities
    for quantity in inequality.sides
  }
  return WRONG_NUMBER if False in found else UNMEASURED if None in found else ""
