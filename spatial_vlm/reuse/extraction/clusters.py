"""Behaviors from clusters of similar reasonings, for chains whose procedure is words and not numbers.

The masked reasonings of a relation's verified chains are embedded and clustered. The largest cluster gives the
behavior: its medoid, the reasoning that is most similar to the others, becomes the instruction.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.cluster import AgglomerativeClustering

from spatial_vlm.reuse.chains.chain_check import sound_chain
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.abstraction import BLANK, deciding_sentences, masked_reasoning
from spatial_vlm.reuse.extraction.extractor import ExtractionSettings, relation_of
from spatial_vlm.reuse.extraction.patterns import UNREAD_CAPTION, behavior_name, can_name
from spatial_vlm.reuse.handbook.behavior import Behavior

_MOST_REASONINGS = 1000
"""Reasonings of one relation and verdict that are clustered, the first ones: clustering takes quadratic memory."""


class _Reasoning(NamedTuple):
  solution: Solution
  text: str
  """Masked."""


def extract_by_clusters(
  solutions: Sequence[Solution], settings: ExtractionSettings
) -> list[Behavior]:
  """Extracts one behavior for each relation with a cluster of at least `min_support` reasonings.

  Clusters come from the answers "Yes.", or from the answers "No." where those have none with this support.
  """
  reasonings: dict[tuple[str, int], list[_Reasoning]] = collections.defaultdict(list)
  for solution in solutions:
    answer = sound_chain(solution)
    if answer is None:
      settings.refused["the chain is not verified"] += 1
      continue
    if not can_name(solution):
      settings.refused[UNREAD_CAPTION] += 1
      continue
    text = masked_reasoning(answer, solution.names)
    reasonings[relation_of(solution), answer.verdict].append(_Reasoning(solution, text))
  behaviors = []
  for relation in sorted({relation for relation, _ in reasonings}):
    for verdict in (1, 0):
      if found := _behavior(relation, verdict, reasonings[relation, verdict], settings):
        behaviors.append(found)
        break
  return behaviors


def _behavior(
  relation: str, verdict: int, reasonings: Sequence[_Reasoning], settings: ExtractionSettings
) -> Behavior | None:
  """Returns the behavior of the largest cluster; None without one of enough support."""
  reasonings = reasonings[:_MOST_REASONINGS]
  if len(reasonings) < settings.min_support:
    settings.refused["fewer chains than min_support"] += len(reasonings)
    return None
  vectors = settings.embedder.embed([r.text.replace(BLANK, "") for r in reasonings])
  cluster = largest_cluster(vectors, settings.cluster_similarity)
  if len(cluster) < settings.min_support:
    settings.refused["the largest cluster has fewer chains than min_support"] += len(reasonings)
    return None
  centre = vectors[cluster].mean(axis=0)
  nearest_first = sorted(cluster, key=lambda i: (-float(vectors[i] @ centre), i))
  name = behavior_name(reasonings[0].solution.relation)
  for i in nearest_first:
    sentences = deciding_sentences(reasonings[i].text, relation)
    instruction = _instruction(name, verdict, sentences, settings)
    if instruction:
      break
  else:
    settings.refused["no reasoning of the cluster gives a rule within the limit on tokens"] += len(
      cluster
    )
    return None
  members = [reasonings[i].solution for i in cluster]
  return Behavior(
    name,
    instruction,
    relation,
    tuple(dict.fromkeys(s.question for s in members)),
    tuple(sorted({s.record for s in members})),
    settings.count_tokens(f"{name}: {instruction}"),
  )


def largest_cluster(vectors: Float[np.ndarray, "N D"], min_similarity: float) -> list[int]:
  """Returns the rows of the largest cluster; the mean similarity of any two parts of it is at least `min_similarity`.

  Clustering is agglomerative with average linkage on the cosine distance. Of equally large clusters, the one with the
  earliest row is returned.
  """
  if len(vectors) == 1:
    return [0]
  distances = np.clip(1 - vectors @ vectors.T, 0, 2)
  clustering = AgglomerativeClustering(
    n_clusters=None,  # pyright: ignore[reportArgumentType]  # documented: the threshold decides
    metric="precomputed",
    linkage="average",
    distance_threshold=max(1 - min_similarity, 1e-6),
  )
  labels = clustering.fit_predict(distances).tolist()
  sizes = collections.Counter(labels)
  largest = max(sizes, key=lambda label: (sizes[label], -labels.index(label)))
  return [row for row, label in enumerate(labels) if label == largest]


def _instruction(
  name: str, verdict: int, sentences: Sequence[str], settings: ExtractionSettings
) -> str:
  """Returns "yes when …" with as many of the last sentences as the limit allows; "" if not even the last fits."""
  start = f"{'yes' if verdict else 'no'} when "
  fitting = ""
  for first in range(len(sentences) - 1, -1, -1):
    instruction = start + "; ".join(sentences[first:])
    if settings.count_tokens(f"{name}: {instruction}") > settings.max_tokens:
      break
    fitting = instruction
  return fitting
