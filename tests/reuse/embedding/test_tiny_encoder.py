"""The encoder that ships with the package."""

from pathlib import Path

import numpy as np
import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder, load_embedder
from spatial_vlm.reuse.retrieval.recall_report import (
  Query,
  make_index,
  recalled_by_rules,
)
from spatial_vlm.reuse.statements.captions import masked_caption
from spatial_vlm.reuse.statements.masking import mask_objects
from spatial_vlm.reuse.statements.relation_keys import relation_key

FOLDER = Path(__file__).parents[3] / "spatial_vlm" / "assets" / "tiny_encoder"
RELATIONS = ["left of", "right of", "ahead of", "perpendicular to", "down from", "touching"]
PARAPHRASES = {
  "The cat walks ahead of the dog.": "ahead of",
  "The fork runs perpendicular to the knife.": "perpendicular to",
  "The cup is rightward of the bottle.": "right of",
}
"""Held-out paraphrases without a relation key."""


@pytest.fixture(scope="module")
def embedder():
  return load_embedder(str(FOLDER))


def test_it_takes_at_most_four_megabytes():
  assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= 4_000_000


def test_it_is_deterministic(embedder):
  again = load_embedder(str(FOLDER))
  texts = [masked_caption(relation) for relation in RELATIONS]
  assert again.fingerprint == embedder.fingerprint
  np.testing.assert_array_equal(again.embed(texts), embedder.embed(texts))
  np.testing.assert_allclose(np.linalg.norm(embedder.embed(texts), axis=1), 1, atol=1e-5)


def test_its_least_similarity_is_calibrated(embedder):
  assert 0.3 < embedder.min_similarity < 1
  unrelated = ["The X is eating the Y.", "What is this?", "The X is a photograph of the Y."]
  captions = [masked_caption(relation) for relation in RELATIONS]
  assert embedder.similarities(unrelated, captions).max() < embedder.min_similarity


def test_it_finds_paraphrases_that_the_lexical_embedder_misses(embedder):
  queries = [Query(caption, relation, relation) for caption, relation in PARAPHRASES.items()]
  assert [relation_key(caption) for caption in PARAPHRASES] == [None] * len(PARAPHRASES)
  lexical = LexicalEmbedder()
  missed = recalled_by_rules(make_index(RELATIONS, lexical, lexical.min_similarity), queries)
  assert missed == [None] * len(queries)
  found = recalled_by_rules(make_index(RELATIONS, embedder, embedder.min_similarity), queries)
  assert found == [*PARAPHRASES.values()]


def test_opposites_are_not_similar(embedder):
  left, right = masked_caption("left of"), masked_caption("right of")
  texts = [
    mask_objects(f"The cat hangs out to the {side} of the dog.") for side in ("left", "right")
  ]
  similarities = embedder.similarities(texts, [left, right])
  assert similarities[0, 0] > similarities[0, 1] and similarities[1, 1] > similarities[1, 0]
