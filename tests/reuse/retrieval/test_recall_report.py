"""Precision and recall of recalled behaviors, counted by hand on a few questions."""

import numpy as np
import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.retrieval.paraphrases import read_paraphrases
from spatial_vlm.reuse.retrieval.recall_report import (
  Counts,
  Query,
  calibrated,
  count,
  lowest_precise,
  make_index,
  make_queries,
  recalled_by_key,
  recalled_by_rules,
  recalled_by_similarity,
  relations_table,
  summary_table,
)

PARAPHRASES = read_paraphrases()
QUERIES = [
  Query("The cat is to the left of the dog.", "left of", "left of"),
  Query("The cat is leftward of the dog.", "left of", "left of"),
  Query("The cat isn't left of the dog.", "left of", None),
  Query("The cat lies under the dog.", "under", "under"),
]
RELATIONS = ["left of", "under", "below"]


def test_recalls_are_counted_by_relation():
  counts = count(PARAPHRASES, QUERIES, ["left of", None, "left of", "below"])
  assert counts == {
    "left of": Counts(paraphrases=2, right=1, confusables=1, confused=1),
    "under": Counts(paraphrases=1, synonyms=1),
  }
  assert counts["left of"].precision == counts["left of"].recall == 0.5
  assert (counts["under"].precision, counts["under"].precision_with_synonyms) == (0, 1)
  total = sum(counts.values(), Counts())
  assert (total.recall, total.precision) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
  assert count(PARAPHRASES, QUERIES[:1], ["right of"])["left of"].wrong == 1


def test_ways_of_recalling():
  lexical = LexicalEmbedder()
  assert recalled_by_key(RELATIONS, QUERIES) == ["left of", None, None, "under"]
  index = make_index(RELATIONS, lexical, 0.99)
  assert recalled_by_rules(index, QUERIES) == ["left of", None, None, "under"]
  found, most = recalled_by_similarity(RELATIONS, QUERIES, lexical.similarities, 0.5)
  assert found == ["left of", None, "left of", "under"]
  assert most[0] == pytest.approx(lexical.similarities(["to the left of"], ["left of"])[0, 0])


def test_the_own_relation_can_be_missing():
  similarities = lambda queries, candidates: np.tile(  # noqa: E731
    np.float32([0.9, 0.8, 0.7]), (len(queries), 1)
  )
  found, _ = recalled_by_similarity(RELATIONS, QUERIES, similarities, 0.75, without_own=True)
  assert found == ["under", "under", "under", "left of"]


def test_the_calibrated_similarity_keeps_the_precision():
  rng = np.random.default_rng(0)
  scores, right = rng.uniform(size=500).round(2), rng.uniform(size=500) < 0.9
  floor = lowest_precise(scores, right, 0.92)
  assert right[scores >= floor].mean() >= 0.92
  lower = [s for s in np.unique(scores) if s < floor]
  assert all(right[scores >= s].mean() < 0.92 for s in lower)
  assert lowest_precise(scores, np.zeros(500), 0.99) == 1


def test_calibration_asks_only_what_similarity_decides():
  """Questions with a key or a qualifier do not count, whatever their similarities."""
  queries = [*QUERIES, Query("The cat isn't leftward of the dog.", "left of", None)]
  similarities = lambda queries, candidates: np.where(  # noqa: E731
    [["leftward" in q and c == "The X is left of the Y." for c in candidates] for q in queries],
    0.8,
    0.3,
  )
  assert calibrated(PARAPHRASES, queries, similarities) == 0.8


def test_every_caption_is_asked_in_all_held_out_paraphrases():
  queries = make_queries(PARAPHRASES, [("left of", "cat", "dog"), ("on", "cup", "bed")], "held_out")
  for relation in ("left of", "on"):
    wanted = [q for q in queries if q.wanted == relation]
    assert len(wanted) == len(PARAPHRASES.relations[relation]["held_out"])
    assert sum(q.group == relation and q.wanted is None for q in queries) > 5
  assert all("cat" in q.caption and "dog" in q.caption for q in queries if q.group == "left of")


def test_tables_are_markdown():
  counts = {"key": count(PARAPHRASES, QUERIES, ["left of", None, "left of", None])}
  assert (
    summary_table(counts).splitlines()[-1] == "| key | 33.3% | 25.0% | 50.00% | 50.00% | 1 of 1 |"
  )
  assert relations_table(counts).splitlines()[2:] == [
    "| left of | 2 | 50% / 50% |",
    "| under | 1 | 0% / – |",
  ]
