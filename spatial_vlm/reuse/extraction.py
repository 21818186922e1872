"""Extraction of behaviors from the policy's own correct chains on training records.

Chains that answer the same object-masked question and end in the same masked comparison follow one procedure. The
procedures that are frequent enough among the correct chains of a question become its behavior. The instruction is read
from these chains, not from knowledge of the relation: a policy that reasons differently gets different behaviors.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from spatial_vlm import answers
from spatial_vlm.reuse.behaviors import Behavior
from spatial_vlm.reuse.reasoning import BLANK, read_comparison
from spatial_vlm.reuse.solutions import Solution

ALTERNATIVE_SHARE = 0.5
"""Frequency, relative to the most frequent procedure, from which a second one joins it ("w > h" or "w < h")."""


@dataclasses.dataclass(frozen=True)
class _Use:
  """One chain that follows a procedure."""

  record: str
  loose_values: tuple[float, ...]


def verified_chain(solution: Solution) -> answers.Answer | None:
  """Returns the chain of a solution if it parses, reaches the label and states only true comparisons; else None."""
  answer = answers.STATEMENT.parse(solution.text)
  if answer is None or answer.form != "chain" or answer.verdict != solution.label:
    return None
  return answer if read_comparison(answer).holds else None


def extract_behaviors(
  solutions: Iterable[Solution], count_tokens: Callable[[str], int], min_support: int
) -> list[Behavior]:
  """Extracts one behavior for each question whose verified chains share a procedure at least `min_support` times.

  Args:
    solutions: answers to training records; those that `verified_chain` rejects are skipped.
    count_tokens: length of a behavior's line under the policy's tokenizer.
    min_support: chains that must agree, at least 1. Procedures are taken from the answers "Yes.", or from the answers
      "No." where those have none with this support.

  Returns:
    Behaviors in the order of their names, with the agreeing records as provenance.
  """
  if min_support < 1:
    raise ValueError(f"min_support is {min_support}; a behavior needs at least 1 chain")
  chains: dict[str, list[tuple[Solution, answers.Answer]]] = collections.defaultdict(list)
  for solution in solutions:
    if answer := verified_chain(solution):
      chains[solution.question].append((solution, answer))
  behaviors = (
    _behavior(question, chains[question], count_tokens, min_support) for question in chains
  )
  return sorted((b for b in behaviors if b), key=lambda b: (b.name, b.questions))


def short_from_chain(behavior: Behavior, answer: answers.Answer, names: Iterable[str] = ()) -> str:
  """Shortens a chain to the behavior's name, the last comparison and the verdict.

  Numbers get the names of their objects: `x=160 < x=640` becomes `red circle x=160 < blue square x=640`. Objects are
  recognized by the boxes of the Caption and by `names`. Raises ValueError when `answer` is not a chain.
  """
  if answer.form != "chain":
    raise ValueError(
      f"a short answer is made from a chain; the form of this answer is {answer.form!r}"
    )
  comparison = read_comparison(answer, names)
  return answers.render_short(behavior.name, comparison.with_names, answer.verdict)


def _behavior(
  question: str,
  chains: Sequence[tuple[Solution, answers.Answer]],
  count_tokens: Callable[[str], int],
  min_support: int,
) -> Behavior | None:
  for verdict, word in ((1, "yes"), (0, "no")):
    uses = _procedures([chain for chain in chains if chain[1].verdict == verdict])
    most = max(map(len, uses.values()), default=0)
    enough = max(min_support, ALTERNATIVE_SHARE * most)
    frequent = sorted((p for p in uses if len(uses[p]) >= enough), key=lambda p: (-len(uses[p]), p))
    if frequent:
      relation = chains[0][0].relation
      name = behavior_name(relation)
      procedures = " or ".join(_fill(p, [use.loose_values for use in uses[p]]) for p in frequent)
      instruction = f"{word} when {procedures}"
      records = sorted({use.record for p in frequent for use in uses[p]})
      tokens = count_tokens(f"{name}: {instruction}")
      return Behavior(name, instruction, relation, (question,), tuple(records), tokens)
  return None


def behavior_name(relation: str) -> str:
  """Returns the name of the behavior for a relation.

  >>> behavior_name("left of")
  'behavior_left_of'
  """
  return "behavior_" + re.sub(r"[^a-z0-9]+", "_", relation.lower()).strip("_")


def _procedures(chains: Sequence[tuple[Solution, answers.Answer]]) -> dict[str, list[_Use]]:
  """Groups chains by the masked comparison that they end in."""
  uses: dict[str, list[_Use]] = collections.defaultdict(list)
  for solution, answer in chains:
    comparison = read_comparison(answer, solution.names)
    letters = dict(zip(map(str.casefold, solution.names), "XY", strict=True))
    uses[comparison.masked(letters)].append(_Use(solution.record, comparison.loose_values))
  return uses


def _fill(procedure: str, values: Sequence[tuple[float, ...]]) -> str:
  """Fills each blank with the number that all chains share (a threshold); where they differ, drops the blank."""
  for column in zip(*values, strict=True):
    shared = len(set(column)) == 1
    blank = BLANK if shared else f"=?{BLANK}"
    procedure = re.sub(blank, str(column[0]) if shared else "", procedure, count=1)
  return " ".join(procedure.split())
