"""The lexical embedding: which questions are similar."""

import numpy as np
import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder, load_embedder
from spatial_vlm.reuse.statements.masking import mask_objects


@pytest.fixture(scope="module")
def embedder():
  return LexicalEmbedder()


def similarity(embedder, a, b):
  return float(embedder.similarities([mask_objects(a)], [mask_objects(b)])[0, 0])


def test_rows_have_length_one(embedder):
  vectors = embedder.embed(["The X is left of the Y.", "", "The X is the Y.", "Ω ≤ 猫"])
  assert vectors.shape == (4, 1024) and vectors.dtype == np.float32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1], atol=1e-6)
  assert embedder.embed([]).shape == (0, 1024)


def test_objects_do_not_count(embedder):
  a = "The red circle is left of the blue square."
  assert similarity(embedder, a, "the hot dog is left of the dining table") == pytest.approx(1)


@pytest.mark.parametrize(
  ("a", "b", "least", "most"),
  [
    ("left of", "to the left of", 0.7, 0.9),
    ("left of", "right of", 0.0, 0.5),
    ("at the left side of", "at the right side of", 0.5, 0.8),  # below the min_similarity of recall
    ("far from", "far away from", 0.4, 0.7),
    ("in front of", "left of", 0.0, 0.5),
    ("above", "below", 0.0, 0.01),
    ("under", "beneath", 0.0, 0.01),
    ("next to", "near", 0.0, 0.01),
  ],
)
def test_similarity_depends_on_shared_words(embedder, a, b, least, most):
  found = similarity(embedder, f"The cat is {a} the mug.", f"The dog is {b} the bus.")
  assert least <= found <= most


def test_the_fingerprint_differs_between_settings():
  assert LexicalEmbedder().fingerprint == LexicalEmbedder().fingerprint
  assert LexicalEmbedder(width=512).fingerprint != LexicalEmbedder().fingerprint


def test_fingerprint_is_the_same_everywhere(embedder):
  """On every machine, in every process and under every scikit-learn; a change makes saved indices unreadable."""
  assert embedder.fingerprint == "lexical-9b42f241e746b6f0"


def test_similarities_are_those_of_all_pairs(embedder):
  queries, candidates = ["The X is left of the Y.", "above"], ["above", "under", "to the left of"]
  found = embedder.similarities(queries, candidates)
  expected = embedder.embed(queries) @ embedder.embed(candidates).T
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found.shape == (2, 3) and found[1, 0] == pytest.approx(1)
  assert embedder.similarities([], candidates).shape == (0, 3)


def test_embedders_are_loaded_by_name():
  assert load_embedder("lexical").fingerprint == LexicalEmbedder().fingerprint
  assert load_embedder("lexical").min_similarity == 0.8
