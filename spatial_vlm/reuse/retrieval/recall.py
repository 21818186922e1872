"""Recall of behaviors for captions: by the key of their relation, or else by similarity."""

from collections.abc import Sequence

from spatial_vlm.reuse.handbook.handbook import Behavior
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex, Match
from spatial_vlm.reuse.statements.masking import mask_objects
from spatial_vlm.reuse.statements.relation_keys import qualifiers, relation_key


def recall(index: BehaviorIndex, captions: Sequence[str]) -> list[Match | None]:
  """Returns the behavior to recall for each caption, with its similarity; None where there is none.

  1. A behavior of exactly the caption's relation key is recalled, with similarity 1; of several the most useful.
  2. Otherwise the most similar behavior that reaches the index's `min_similarity` is recalled, unless its relation is
     known to be another one, or only one of the two statements is qualified (negated, seen from a viewpoint, with
     exchanged roles, "almost").

  Only the most similar behavior is considered: the next in similarity may state the opposite.
  """
  by_key: dict[str, Behavior] = {}
  for behavior in index.handbook.behaviors:
    key = _key(behavior)
    if key and (key not in by_key or behavior.rank > by_key[key].rank):
      by_key[key] = behavior
  keys = [relation_key(caption) for caption in captions]
  others = [c for c, key in zip(captions, keys, strict=True) if key not in by_key]
  found = dict(zip(others, index.search([mask_objects(c) for c in others], 1), strict=True))
  recalled: list[Match | None] = []
  for caption, key in zip(captions, keys, strict=True):
    if key in by_key:
      recalled.append((by_key[key], 1.0))
    else:
      allowed = [match for match in found[caption] if _may_answer(match[0], caption, key)]
      recalled.append(allowed[0] if allowed else None)
  return recalled


def _key(behavior: Behavior) -> str | None:
  return behavior.relation or relation_key(behavior.questions[0])


def _may_answer(behavior: Behavior, caption: str, key: str | None) -> bool:
  if key and _key(behavior):
    return False  # the behavior of an equal key would have been recalled by it
  return any(qualifiers(caption) == qualifiers(question) for question in behavior.questions)
