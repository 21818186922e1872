"""The similarities of M3-Embedding and InfoNCE, against sums written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm.model.xlm_roberta import Encoding
from spatial_vlm.objectives.contrastive import (
  dense_similarities,
  info_nce,
  lexical_similarities,
  vector_similarities,
)


def encodings(count, length, seed, width=5):
  rng = np.random.default_rng(seed)
  mask = np.arange(length)[None] < rng.integers(2, length + 1, count)[:, None]
  tokens = np.where(mask, rng.integers(4, 9, (count, length)), 1)
  vectors = rng.normal(size=(count, length, width)) * (mask & (np.arange(length) > 0))[..., None]
  vectors /= np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-9)
  dense = rng.normal(size=(count, width))
  dense /= np.linalg.norm(dense, axis=1, keepdims=True)
  lexical = rng.uniform(0.1, 2, (count, length)) * mask
  arrays = (jnp.float32(x) for x in (dense, lexical, vectors))
  return Encoding(*arrays), jnp.asarray(tokens), jnp.asarray(mask)


def test_dense_similarities():
  (q, *_), (c, *_) = encodings(3, 4, 0), encodings(2, 6, 1)
  expected = [[sum(a * b for a, b in zip(x, y, strict=True)) for y in c.dense] for x in q.dense]
  np.testing.assert_allclose(dense_similarities(q, c), expected, atol=1e-6)


def test_lexical_similarities_take_the_largest_weight_of_a_token():
  (q, q_tokens, _), (c, c_tokens, _) = encodings(3, 7, 2), encodings(4, 5, 3)

  def weights(encoding, tokens, row):
    largest = {}
    for token, weight in zip(tokens[row].tolist(), encoding.lexical[row].tolist(), strict=True):
      largest[token] = max(weight, largest.get(token, 0.0))
    length = sum(w * w for w in largest.values()) ** 0.5
    return {token: weight / length for token, weight in largest.items()}

  expected = np.zeros((3, 4))
  for i in range(3):
    for j in range(4):
      a, b = weights(q, q_tokens, i), weights(c, c_tokens, j)
      expected[i, j] = sum(a[t] * b[t] for t in a.keys() & b.keys())
  np.testing.assert_allclose(lexical_similarities(q, q_tokens, c, c_tokens, 9), expected, atol=1e-5)


def test_vector_similarities_ignore_padding_and_the_first_token():
  (q, _, q_mask), (c, _, c_mask) = encodings(3, 6, 4), encodings(2, 8, 5)
  expected = np.zeros((3, 2))
  for i in range(3):
    for j in range(2):
      rows, columns = (
        e.vectors[n, 1 : int(m[n].sum())] for e, m, n in ((q, q_mask, i), (c, c_mask, j))
      )
      expected[i, j] = np.mean([max(float(a @ b) for b in columns) for a in rows])
  np.testing.assert_allclose(vector_similarities(q, q_mask, c, c_mask), expected, atol=1e-6)
  opposite = c.replace(vectors=-jnp.tile(q.vectors[:1, 1:2], (2, 8, 1)) * c_mask[..., None])
  assert vector_similarities(q, q_mask, opposite, c_mask)[0, 0] < 0


def test_info_nce_leaves_excluded_pairs_out():
  scores = jnp.float32([[0.9, 0.2, 0.8], [0.1, 0.7, 0.3], [0.5, 0.4, 0.6]])
  excluded = jnp.asarray([[True, False, True], [False, True, False], [True, False, True]])
  loss, count = info_nce(scores, excluded, 0.5)
  kept = [[0, 1], [0, 1, 2], [1, 2]]
  expected = sum(
    np.log(sum(np.exp(scores[i, j] / 0.5) for j in kept[i])) - scores[i, i] / 0.5 for i in range(3)
  )
  assert (float(loss), int(count)) == (pytest.approx(float(expected), abs=1e-5), 3)


def test_gradients_are_finite_for_texts_without_a_weight():
  q, tokens, mask = encodings(2, 4, 6)

  def loss(lexical):
    empty = q.replace(lexical=lexical)
    return info_nce(lexical_similarities(empty, tokens, q, tokens, 9), jnp.eye(2, dtype=bool), 0.1)[
      0
    ]

  assert np.isfinite(jax.grad(loss)(jnp.zeros_like(q.lexical))).all()
