"""Ways to choose the behavior of a question: beside recall, those that an evaluation compares it with."""

import dataclasses
import random
from collections.abc import Callable, Sequence

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.reuse.extraction.patterns import behavior_name
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex, Match
from spatial_vlm.reuse.retrieval.recall import recall
from spatial_vlm.reuse.statements.captions import masked_caption
from spatial_vlm.reuse.statements.masking import mask_objects

Chooser = Callable[[BehaviorIndex, Sequence[str]], list[Match | None]]
"""(index, captions) → the behavior for each caption, with its similarity; None where the full chain is asked for."""


def least_similar(index: BehaviorIndex, captions: Sequence[str]) -> list[Match | None]:
  """Returns a wrong behavior for each caption: the least similar one of the handbook, and never the recalled one."""
  masked = [mask_objects(c) for c in captions]
  found = index.search(masked, len(index.handbook), min_similarity=-1.0)
  recalled = recall(index, captions)
  chosen: list[Match | None] = []
  for matches, right in zip(found, recalled, strict=True):
    wrong = [match for match in matches if right is None or match[0] != right[0]]
    chosen.append(min(wrong, key=lambda match: (match[1], match[0].name), default=None))
  return chosen


def drawn_at_random(index: BehaviorIndex, captions: Sequence[str]) -> list[Match | None]:
  """Returns a behavior drawn uniformly for each caption; the same caption always draws the same."""
  behaviors = index.handbook.behaviors
  return [(random.Random(caption).choice(behaviors), 0.0) for caption in captions]


def the_first(index: BehaviorIndex, captions: Sequence[str]) -> list[Match | None]:
  """Returns the first behavior of the handbook for every caption (see `all_in_one`)."""
  return [(index.handbook.behaviors[0], 0.0)] * len(captions)


def all_in_one(index: BehaviorIndex) -> BehaviorIndex:
  """Returns an index of one behavior whose line consists of the lines of all behaviors."""
  first, *others = index.handbook.behaviors
  joined = Behavior(
    name=first.name,
    instruction=" ".join([first.instruction, *(b.line for b in others)]),
    relation=first.relation,
    questions=first.questions,
    provenance=tuple(sorted({r for b in index.handbook.behaviors for r in b.provenance})),
    tokens=sum(b.tokens for b in index.handbook.behaviors),
  )
  return index.with_handbook(Handbook(1, joined.tokens, (joined,)))


def best_share(index: BehaviorIndex, share: float) -> BehaviorIndex:
  """Returns an index of the most useful `share` of the behaviors, at least one."""
  handbook = index.handbook
  count = max(1, round(share * len(handbook)))
  best = sorted(handbook.behaviors, key=lambda b: b.rank, reverse=True)[:count]
  kept = tuple(b for b in handbook.behaviors if b in best)
  return index.with_handbook(dataclasses.replace(handbook, behaviors=kept))


def with_other_relations(index: BehaviorIndex) -> BehaviorIndex:
  """Returns an index of the handbook and a behavior for each relation of VSR that it lacks: what distracts a search."""
  handbook = index.handbook
  known = {behavior.relation for behavior in handbook.behaviors}
  others = [relation_behavior(relation) for relation in META_CATEGORY if relation not in known]
  behaviors = (*handbook.behaviors, *others)
  tokens = sum(behavior.tokens for behavior in behaviors)
  return index.with_handbook(Handbook(len(behaviors), tokens, behaviors))


def relation_behavior(relation: str) -> Behavior:
  """Returns a behavior that only repeats its relation, with the relation's caption as its question."""
  name, rule = behavior_name(relation), f"yes when {relation}"
  source = "by-hand:relations"
  return Behavior(name, rule, relation, (masked_caption(relation),), (source,), tokens=8)
