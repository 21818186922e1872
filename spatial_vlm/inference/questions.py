"""How a question is asked: with a recalled behavior, or for the full chain."""

import dataclasses
from collections.abc import Sequence

from spatial_vlm.reuse.behaviors import Behavior
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.reuse.masking import mask_objects
from spatial_vlm.tasks import statements


@dataclasses.dataclass(frozen=True)
class Plan:
  """The form in which a statement is to be answered, and the question that asks for it."""

  form: str
  """"short" with a behavior, else "chain"."""
  question: str
  behavior: Behavior | None
  similarity: float
  """Of the behavior's question to the one asked; 0 without a behavior."""


def plan_answers(index: BehaviorIndex, captions: Sequence[str], max_tokens: int) -> list[Plan]:
  """Recalls the most similar behavior for each caption.

  Where it is below the index's floor, or its line has more than `max_tokens` tokens, the full chain is asked for: the
  next in similarity may be about the opposite.
  """
  found = index.search([mask_objects(caption) for caption in captions], 1)
  return [
    _plan(caption, matches, max_tokens) for caption, matches in zip(captions, found, strict=True)
  ]


def plain_question(caption: str, form: str) -> Plan:
  """Asks for an answer in `form` ("chain" or "direct") without recalling anything."""
  return Plan(form, statements.question(caption, form), None, 0.0)


def _plan(caption: str, matches: Sequence[tuple[Behavior, float]], max_tokens: int) -> Plan:
  for behavior, similarity in matches:
    if behavior.tokens <= max_tokens:
      return Plan(
        "short", statements.question(caption, "short", behavior.line), behavior, similarity
      )
  return plain_question(caption, "chain")
