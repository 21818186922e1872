"""Extraction of behaviors from the policy's own correct chains on training records.

Chains that answer the same object-masked question and end in the same masked comparison follow one procedure. The
procedures that are frequent enough among the correct chains of a question become its behavior. The instruction is read
from these chains, not from knowledge of the relation: a policy that reasons differently gets different behaviors.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.statement import read_statement
from spatial_vlm.reuse.chains.chain_check import Reading, read_chain
from spatial_vlm.reuse.chains.comparison import Comparison, fill_blanks, shared_values
from spatial_vlm.reuse.chains.relation_verdict import can_decide, decides
from spatial_vlm.reuse.chains.rule import rule_holds
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.handbook.behavior import Behavior


class AlternativeShares(NamedTuple):
  """Which further procedures join the most frequent one ("w > h" or "w < h").

  `launch/calibrate_rules.py` measures both shares on validation scenes; docs/measurements.md has its table.
  """

  frequency: float = 0.2
  """Least frequency, relative to the most frequent procedure. Policies write the halves of a rule unequally often."""
  right: float = 0.9
  """Least share, among the records whose boxes fulfil the procedure, of those with its verdict.

  Each chain was verified, and yet some compare what does not decide: "X w < Y h, Y w < h" holds for most upright bars.
  """


SHARES = AlternativeShares()

OPPOSED_SHARE = 0.5
"""Share of chains with the other verdict, relative to a procedure's own, from which it decides nothing."""

SHARED_VALUE = 0.8
"""Share of a procedure's chains from which their number is its threshold; chains with another number do not count."""

UNREAD_CAPTION = "the caption gives no relation that can be named, or no objects"


@dataclasses.dataclass(frozen=True)
class _Use:
  """One chain that follows a procedure."""

  record: str
  loose_values: tuple[float, ...]


class _Chain(NamedTuple):
  """A chain that was read."""

  solution: Solution
  comparison: Comparison
  boxes: tuple[Box, Box] | None
  """Of X and Y, as the chain states them."""


def extract_behaviors(
  solutions: Iterable[Solution],
  count_tokens: Callable[[str], int],
  min_support: int,
  shares: AlternativeShares = SHARES,
) -> list[Behavior]:
  """Extracts one behavior for each question whose verified chains share a procedure at least `min_support` times.

  Args:
    solutions: answers to training records; skipped are those whose comparison `read_chain` leaves and those that
      `can_name` refuses.
    count_tokens: length of a behavior's line under the policy's tokenizer.
    min_support: chains that must agree, at least 1. Procedures are taken from the answers "Yes.", or from the answers
      "No." where those have none with this support.
    shares: which further procedures join the most frequent one of a question.

  Returns:
    Behaviors in the order of their names, with the agreeing records as provenance.
  """
  if min_support < 1:
    raise ValueError(f"min_support is {min_support}; a behavior needs at least 1 chain")
  chains: dict[str, list[_Chain]] = collections.defaultdict(list)
  for solution in filter(can_name, solutions):
    reading = read_chain(solution)
    if reading.comparison:
      boxes = _boxes_of(solution, reading)
      chains[solution.question].append(_Chain(solution, reading.comparison, boxes))
  behaviors = (
    _behavior(question, chains[question], count_tokens, min_support, shares) for question in chains
  )
  return sorted((b for b in behaviors if b), key=lambda b: (b.name, b.questions))


def short_from_chain(behavior: Behavior, solution: Solution) -> str | None:
  """Shortens a chain to the behavior's name, its comparison and the verdict; None without a comparison to use.

  The comparison is the one that `read_chain` accepted; it must also be able to decide the behavior's relation and agree
  with the verdict on it. It is written anew: `since x=160 is less than x=640` becomes `red circle x=160 < blue square
  x=640`.
  """
  comparison = read_chain(solution).comparison
  if comparison is None or not can_decide(behavior.relation, comparison):
    return None
  if decides(behavior.relation, comparison) not in (None, bool(solution.label)):
    return None
  return short_answer(behavior, comparison, solution)


def short_answer(behavior: Behavior, comparison: Comparison, solution: Solution) -> str:
  """Returns the short form of a right answer.

  Several inequalities are followed by what they mean together ("so it is not parallel to it"), as in a chain. Asked for
  the verdict right after them, a policy may never learn it: whether two signs are equal is an exclusive or.
  """
  stated = comparison.with_names
  if len(comparison.inequalities) > 1 and (meaning := _meaning(solution)):
    stated = f"{stated}, {meaning}"
  return answers.render_short(behavior.name, stated, solution.label)


def _meaning(solution: Solution) -> str:
  """Returns whether the statement holds, with pronouns; "" for one without "is" or "are"."""
  _, words, _ = read_statement(solution.caption) or ("", "", "")
  verb, _, relation = words.partition(" ")
  pronoun = {"is": "it", "are": "they"}.get(verb)
  if pronoun is None:
    return ""
  positive = relation.removeprefix("not ")
  holds = bool(solution.label) == (relation == positive)
  return f"so {pronoun} {verb} {'' if holds else 'not '}{positive} it"


def _boxes_of(solution: Solution, reading: Reading) -> tuple[Box, Box] | None:
  """Returns the boxes of X and Y in a chain; None where one is missing."""
  stated = reading.answer.boxes if reading.answer else {}
  boxes = {name.casefold(): box for name, box in stated.items()}
  x, y = (boxes.get(name.casefold()) for name in solution.names)
  return None if x is None or y is None else (x, y)


def _behavior(
  question: str,
  chains: Sequence[_Chain],
  count_tokens: Callable[[str], int],
  min_support: int,
  shares: AlternativeShares,
) -> Behavior | None:
  found = [_procedures(chains, verdict) for verdict in (0, 1)]
  for verdict, word in ((1, "yes"), (0, "no")):
    own = {procedure: _agreeing(uses) for procedure, uses in found[verdict].items()}
    uses = _rules(_deciding(own, found[1 - verdict]))
    most = max(map(len, uses.values()), default=0)
    enough = max(min_support, shares.frequency * most)
    frequent = {p: uses[p] for p in uses if len(uses[p]) >= enough}
    frequent = sorted(_without_opposites(frequent), key=lambda p: (-len(uses[p]), p))
    frequent = [
      p
      for place, p in enumerate(frequent)
      if place == 0 or _right_share(p, chains, verdict) >= shares.right
    ]
    if frequent:
      relation = chains[0].solution.relation
      name = behavior_name(relation)
      instruction = f"{word} when {' or '.join(frequent)}"
      records = sorted({use.record for p in frequent for use in uses[p]})
      tokens = count_tokens(f"{name}: {instruction}")
      return Behavior(name, instruction, relation, (question,), tuple(records), tokens)
  return None


def behavior_name(relation: str) -> str:
  """Returns the name of the behavior for a relation; "" for one without a Latin letter or digit.

  >>> behavior_name("left of"), behavior_name("左")
  ('behavior_left_of', '')
  """
  words = re.sub(r"[^a-z0-9]+", "_", relation.lower()).strip("_")
  return words and f"behavior_{words}"


def can_name(solution: Solution) -> bool:
  """Tells whether a behavior can be made of a solution: its relation gives a name, and both objects are known."""
  return bool(behavior_name(solution.relation) and all(solution.names))


def _right_share(rule: str, chains: Sequence[_Chain], verdict: int) -> float:
  """Returns the share of `verdict` among the records whose stated boxes fulfil the rule; 1 where none can be told."""
  labels = [c.solution.label for c in chains if c.boxes and rule_holds(rule, *c.boxes)]
  return labels.count(verdict) / len(labels) if labels else 1.0


def _procedures(chains: Sequence[_Chain], verdict: int) -> dict[str, list[_Use]]:
  """Groups the chains of one verdict by the masked comparison that they end in."""
  uses: dict[str, list[_Use]] = collections.defaultdict(list)
  for solution, comparison, _ in chains:
    if solution.label == verdict:
      letters = dict(zip(map(str.casefold, solution.names), "XY", strict=True))
      uses[comparison.masked(letters)].append(_Use(solution.record, comparison.loose_values))
  return uses


def _agreeing(uses: Sequence[_Use]) -> list[_Use]:
  """Drops chains whose number is not the one that nearly all others share."""
  shared = shared_values([use.loose_values for use in uses], SHARED_VALUE)

  def agrees(use: _Use) -> bool:
    return all(s in (None, v) for s, v in zip(shared, use.loose_values, strict=True))

  return [*filter(agrees, uses)]


def _rules(procedures: Mapping[str, list[_Use]]) -> dict[str, list[_Use]]:
  """Returns rule → chains: procedures with their numbers; one whose chains differ in a number has no condition."""
  return {
    fill_blanks(procedure, uses[0].loose_values): uses
    for procedure, uses in procedures.items()
    if len({use.loose_values for use in uses}) == 1
  }


def _deciding(
  uses: Mapping[str, list[_Use]], others: Mapping[str, list[_Use]]
) -> dict[str, list[_Use]]:
  """Drops procedures that the other verdict follows, with equal thresholds, in half as many chains or more."""
  kept = {}
  for procedure, own in uses.items():
    values = {use.loose_values for use in own}
    opposed = sum(use.loose_values in values for use in others.get(procedure, ()))
    if opposed < OPPOSED_SHARE * len(own):
      kept[procedure] = own
  return kept


def _without_opposites(procedures: Iterable[str]) -> list[str]:
  """Drops single inequalities that stand next to their opposite: "x < or x >" is always true."""
  every = {*procedures}
  opposite = {p: p.translate(str.maketrans("<>", "><")) for p in every}
  return [p for p in every if ", " in p or opposite[p] == p or opposite[p] not in every]
