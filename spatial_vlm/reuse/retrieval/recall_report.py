"""Precision and recall of the recall of behaviors, on paraphrases of VSR's captions and on confusable statements."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from spatial_vlm.reuse.embedding.embedder import Embedder
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.retrieval.choosers import relation_behavior
from spatial_vlm.reuse.retrieval.paraphrases import Paraphrases
from spatial_vlm.reuse.retrieval.recall import recall
from spatial_vlm.reuse.statements.captions import masked_caption
from spatial_vlm.reuse.statements.masking import mask_objects
from spatial_vlm.reuse.statements.relation_keys import qualifiers, relation_key

PRECISION = 0.99
"""Share of right recalls by similarity that `calibrated` asks for."""

Recalled = Sequence[str | None]
"""The relation of the behavior that each caption recalls."""


@dataclasses.dataclass(frozen=True)
class Query:
  """A caption, and the relation whose behavior it should recall."""

  caption: str
  group: str
  """The relation that it is counted under."""
  wanted: str | None
  """None for a confusable or unrelated statement, which should recall nothing."""


@dataclasses.dataclass(frozen=True)
class Counts:
  """Recalls of the queries of one relation, or their sums."""

  paraphrases: int = 0
  right: int = 0
  synonyms: int = 0
  """Paraphrases that recalled a synonym of their relation."""
  wrong: int = 0
  """Paraphrases that recalled any other relation."""
  confusables: int = 0
  confused: int = 0
  """Confusable statements that recalled anything."""

  def __add__(self, other: "Counts") -> "Counts":
    pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
    return Counts(*(a + b for a, b in pairs))

  @property
  def precision(self) -> float:
    """Right recalls among all recalls; NaN without any."""
    total = self.right + self.synonyms + self.wrong + self.confused
    return self.right / total if total else float("nan")

  @property
  def precision_with_synonyms(self) -> float:
    """The same, with recalled synonyms counted as right."""
    total = self.right + self.synonyms + self.wrong + self.confused
    return (self.right + self.synonyms) / total if total else float("nan")

  @property
  def recall(self) -> float:
    """Share of the paraphrases that recalled the right behavior."""
    return self.right / self.paraphrases if self.paraphrases else float("nan")


def make_queries(
  paraphrases: Paraphrases, statements: Iterable[tuple[str, str, str]], split: str
) -> list[Query]:
  """Returns the paraphrases and confusable statements of a split, about the objects of VSR's captions.

  Args:
    statements: relation and names of both objects of each caption. Each is asked about in every paraphrase of its
      relation, in all its confusable statements and in one statement of no relation of VSR.
  """
  others = paraphrases.others(split)
  queries = []
  for number, (relation, subject, other) in enumerate(statements):
    sentences = [
      *paraphrases.sentences(relation, split),
      *paraphrases.confusables(relation, split),
      others[number % len(others)],
    ]
    queries += [
      Query(s.template.format(X=subject, Y=other), relation, s.relation) for s in sentences
    ]
  return queries


def make_index(
  relations: Iterable[str], embedder: Embedder, min_similarity: float
) -> BehaviorIndex:
  """Returns an index with one behavior for each relation, whose question is the relation's caption."""
  behaviors = tuple(relation_behavior(r) for r in relations)
  handbook = Handbook(len(behaviors), sum(b.tokens for b in behaviors), behaviors)
  return BehaviorIndex(handbook, embedder, min_similarity)


def recalled_by_rules(index: BehaviorIndex, queries: Sequence[Query]) -> list[str | None]:
  """Returns what `recall.recall` recalls."""
  return [match and match[0].relation for match in recall(index, [q.caption for q in queries])]


def recalled_by_key(relations: Iterable[str], queries: Sequence[Query]) -> list[str | None]:
  """Returns what the relation key alone recalls."""
  known = set(relations)
  keys = (relation_key(query.caption) for query in queries)
  return [key if key in known else None for key in keys]


def recalled_by_similarity(
  relations: Sequence[str],
  queries: Sequence[Query],
  similarities: Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "Q C"]],
  min_similarity: float,
  without_own: bool = False,
) -> tuple[list[str | None], Float[np.ndarray, "Q"]]:
  """Returns the most similar relation of each query, None below `min_similarity`, and the similarity.

  Args:
    similarities: of masked captions, as `Embedder.similarities`.
    without_own: the handbook lacks the relation of each query.
  """
  texts = [_masked(query.caption) for query in queries]
  unique = list(dict.fromkeys(texts))
  rows = {text: row for row, text in enumerate(unique)}
  table = similarities(unique, [masked_caption(relation) for relation in relations])
  scores = table[[rows[text] for text in texts]]
  if without_own:
    own = [list(relations).index(query.group) for query in queries]
    scores[np.arange(len(queries)), own] = -1
  best = scores.argmax(axis=1)
  most = scores[np.arange(len(queries)), best]
  found = [
    relations[int(b)] if s >= min_similarity else None for b, s in zip(best, most, strict=True)
  ]
  return found, most


def calibrated(
  paraphrases: Paraphrases,
  queries: Sequence[Query],
  similarities: Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "Q C"]],
) -> float:
  """Returns the smallest similarity from which at least PRECISION of the recalls by similarity are right.

  It is measured on the queries that `recall.recall` leaves to similarity: those without a relation key and without a
  qualifier. Each is asked twice, of a handbook with all relations and of one without its own. Synonyms count as right.
  """
  left = [q for q in queries if not relation_key(q.caption) and not qualifiers(q.caption)]
  relations = list(paraphrases.relations)
  scores, right = [], []
  for without_own in (False, True):
    found, most = recalled_by_similarity(relations, left, similarities, -1, without_own)
    scores.append(most)
    right += [
      bool(q.wanted) and f in paraphrases.same(q.group) for q, f in zip(left, found, strict=True)
    ]
  return lowest_precise(np.concatenate(scores), np.array(right), PRECISION)


def lowest_precise(scores: Float[np.ndarray, "N"], right: np.ndarray, precision: float) -> float:
  """Returns the lowest threshold with at least `precision` among the scores that reach it; 1 if there is none.

  >>> lowest_precise(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 1]), 0.75)
  0.6
  >>> lowest_precise(np.array([0.9, 0.8, 0.7, 0.6]), np.array([1, 1, 0, 0]), 0.9)
  0.8
  """
  values, place = np.unique(-scores, return_inverse=True)
  total = np.cumsum(np.bincount(place))
  hits = np.cumsum(np.bincount(place, weights=right))
  good = np.flatnonzero(hits >= precision * total)
  return float(-values[good[-1]]) if len(good) else 1.0


def count(
  paraphrases: Paraphrases, queries: Sequence[Query], recalled: Recalled
) -> dict[str, Counts]:
  """Counts the recalls of each relation, in the order of `paraphrases`."""
  found: dict[str, Counts] = {}
  for query, relation in zip(queries, recalled, strict=True):
    if query.wanted is None:
      one = Counts(confusables=1, confused=int(relation is not None))
    else:
      right = relation == query.wanted
      synonym = not right and relation in paraphrases.same(query.wanted)
      wrong = relation is not None and not right and not synonym
      one = Counts(1, int(right), int(synonym), int(wrong))
    found[query.group] = found.get(query.group, Counts()) + one
  return {relation: found[relation] for relation in paraphrases.relations if relation in found}


def summary_table(results: Mapping[str, Mapping[str, Counts]]) -> str:
  """Returns one row of Markdown for each way of recalling."""
  lines = [
    "| | recall | mean over relations | precision | synonyms right | confusables recalled |",
    "|---|---|---|---|---|---|",
  ]
  for name, counts in results.items():
    total = sum(counts.values(), Counts())
    mean = np.mean([c.recall for c in counts.values()])
    lines.append(
      f"| {name} | {total.recall:.1%} | {mean:.1%} | {total.precision:.2%} | {total.precision_with_synonyms:.2%} "
      f"| {total.confused:,} of {total.confusables:,} |"
    )
  return "\n".join(lines)


def relations_table(results: Mapping[str, Mapping[str, Counts]]) -> str:
  """Returns one row of Markdown for each relation: recall / precision of each way of recalling."""
  names = list(results)
  lines = [f"| relation | paraphrases | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
  for relation, first in results[names[0]].items():
    cells = [_cell(results[name][relation]) for name in names]
    lines.append(f"| {relation} | {first.paraphrases} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _cell(counts: Counts) -> str:
  return f"{counts.recall:.0%} / " + (
    "–" if np.isnan(counts.precision) else f"{counts.precision:.0%}"
  )


_masked = functools.lru_cache(maxsize=262_144)(mask_objects)
