"""Merges behaviors of one relation whose instructions say the same in other words."""

import collections
import re
from collections.abc import Iterable

from spatial_vlm.reuse.embedding.embedder import Embedder
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.duplicates import merge, merge_equal

_DECISIVE = re.compile(r"\b(?:x|y|yes|no|not|never|without)\b|[<>=≤≥]+", re.IGNORECASE)


def merge_similar(
  behaviors: Iterable[Behavior], embedder: Embedder, min_similarity: float
) -> list[Behavior]:
  """Merges behaviors with equal or similar instructions; never across relations, and not by name.

  Equal instructions are merged first. Then the behavior of highest rank absorbs similar ones, then the next one. Two
  instructions are similar if their similarity is at least `min_similarity` and they name X and Y, compare and negate in
  the same order: "X < Y" and "Y < X" stay apart however similar an embedder finds them.

  Returns:
    The merged behaviors, by relation in the order of its first behavior, then by rank.
  """
  by_relation: dict[str, list[Behavior]] = collections.defaultdict(list)
  for behavior in behaviors:
    by_relation[behavior.relation].append(behavior)
  return [
    merge(group)
    for same_relation in by_relation.values()
    for group in _groups(same_relation, embedder, min_similarity)
  ]


def _groups(
  behaviors: list[Behavior], embedder: Embedder, min_similarity: float
) -> list[list[Behavior]]:
  """Groups behaviors of one relation around those of highest rank."""
  ranked = sorted(merge_equal(behaviors), key=lambda b: b.rank, reverse=True)
  texts = [b.instruction for b in ranked]
  scores = embedder.similarities(texts, texts)
  groups: list[list[int]] = []
  for i, behavior in enumerate(ranked):
    for group in groups:
      first = ranked[group[0]]
      similar = scores[group[0], i] >= min_similarity
      if similar and _decides(first) == _decides(behavior):
        group.append(i)
        break
    else:
      groups.append([i])
  return [[ranked[i] for i in group] for group in groups]


def _decides(behavior: Behavior) -> list[str]:
  """Returns what must not change between two wordings: objects, comparison signs and negations, in order."""
  return [word.lower() for word in _DECISIVE.findall(behavior.instruction)]
