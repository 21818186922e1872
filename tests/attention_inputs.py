"""Inputs of attention, and its values with gradients, for the tests of its forms."""

import jax
import numpy as np
from jax import numpy as jnp

SEGMENTS = {
  "between padding": [0] * 21 + [1] * 60 + [2] * 1 + [3] * 40 + [0] * 18,
  "whole": [1] * 140,
  "many": [1 + i // 9 for i in range(140)],
}


def inputs(B=3, T=140, N=4, K=2, H=16, dtype=jnp.float32):
  """q, k, v, segments and a cotangent that is also non-zero at padding."""
  rng = np.random.default_rng(0)
  q, k, v, cotangent = (
    jnp.asarray(rng.standard_normal(shape), dtype)
    for shape in [(B, T, N, H), (B, K, T, H), (B, K, T, H), (B, T, N, H)]
  )
  rows = [np.resize(row, T) for row in SEGMENTS.values()]
  return q, k, v, jnp.asarray(np.resize(rows, (B, T)), jnp.int32), cotangent


def with_gradients(attend, q, k, v, segments, cotangent):
  mixed, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments), q, k, v)
  return mixed, *pull(cotangent)


def assert_same(found, expected, atol=5e-6):
  for name, a, b in zip(("mixed", "dq", "dk", "dv"), found, expected, strict=True):
    assert np.isfinite(a).all(), name
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)
