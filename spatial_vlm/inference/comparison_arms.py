"""The questions of each arm of `compare`: full chains, recalled behaviors, and what reuse is compared with."""

import dataclasses
from collections.abc import Sequence

from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.reuse.retrieval.choosers import (
  all_in_one,
  best_share,
  drawn_at_random,
  least_similar,
  the_first,
  with_other_relations,
)
from spatial_vlm.tasks.task import Task

FULL_CHAIN = "full chain"
REUSE = "reuse"
NO_BEHAVIOR = "short, no behavior"
WRONG = "short, wrong behavior"
RANDOM = "short, random behavior"
ALL = "short, all behaviors"
BC_SFT = "BC-SFT"
"""A policy that was trained on short answers to questions without behaviors."""


def arms(task: Task, recall: Recall, shares: Sequence[float]) -> dict[str, QuestionBuilder]:
  """Returns name → questions of each arm of one policy; a handbook of one behavior has no wrong one.

  Args:
    task: the task of the questions.
    recall: the handbook. Where it recalls nothing, `reuse` asks for the full chain.
    shares: for each, an arm that recalls from that share of the handbook, the most useful behaviors.
  """

  def chosen(**changes) -> QuestionBuilder:
    return QuestionBuilder(task, "chain", dataclasses.replace(recall, **changes))

  together, wide = all_in_one(recall.index), with_other_relations(recall.index)
  made = {
    FULL_CHAIN: QuestionBuilder(task, "chain"),
    REUSE: chosen(),
    NO_BEHAVIOR: QuestionBuilder(task, "short"),
    WRONG: chosen(choose=least_similar),
    RANDOM: chosen(choose=drawn_at_random),
    ALL: chosen(index=together, behavior_tokens=together.handbook.max_tokens, choose=the_first),
  }
  if len(recall.index.handbook) < 2:
    del made[WRONG]
  for share in shares:
    part = best_share(recall.index, share)
    made[f"reuse, {len(part.handbook)} of {len(recall.index.handbook)} behaviors"] = chosen(
      index=part
    )
  if padded := len(wide.handbook) - len(recall.index.handbook):
    made[f"reuse, and {padded} behaviors of other relations"] = chosen(index=wide)
  return made


def behaviors_of(name: str, questions: QuestionBuilder, recall: Recall) -> int:
  """Returns from how many behaviors the arm `name` takes those of its prompts; 0: it has none in the prompt."""
  if name == ALL:
    return len(recall.index.handbook)
  return len(questions.recall.index.handbook) if questions.recall else 0
