"""Attention by blocks of queries equals the formula, values and gradients, and builds no square array."""

from functools import partial

import jax
import numpy as np
import pytest
from attention_inputs import SEGMENTS, assert_same, inputs, with_gradients
from jax import numpy as jnp

from spatial_vlm.model import blocked, flash
from spatial_vlm.model.attention import plain_attention
from spatial_vlm.model.blocked import blocked_attention


def both(arrays, causal):
  return [
    jax.jit(partial(with_gradients, partial(attend, causal=causal)))(*arrays)
    for attend in (blocked_attention, plain_attention)
  ]


@pytest.mark.parametrize("causal", [True, False])
def test_blocks_equal_the_formula(causal):
  """Three blocks, the last one smaller; padding, segments of one token, three query heads to a key."""
  assert max(map(len, SEGMENTS.values())) > 2 * blocked.BLOCK
  assert_same(*both(inputs(N=6), causal))


def test_rows_in_turns_equal_all_at_once(monkeypatch):
  arrays = inputs(B=6)
  expected = both(arrays, True)[0]
  of_row = 4 * 4 * blocked.BLOCK * 140
  monkeypatch.setattr(blocked, "SCORES_BYTES", 5 * of_row)  # five rows fit; three divide six
  found = both(arrays, True)[0]
  assert_same(found, expected, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_several_blocks_share_a_span_of_a_long_row(monkeypatch, causal):
  """600 queries: the last block is filled up, and blocks of one span see each other's keys only under the mask."""
  monkeypatch.setattr(blocked, "SPANS", 3)
  sizes = [span.blocks for span in blocked.spans(640, 640, True)]
  assert sizes == [4, 4, 2]
  assert_same(*both(inputs(B=1, T=600, N=2, K=1, H=8), causal))


@pytest.mark.parametrize(("queries", "tokens"), [(3, 9), (70, 140)])
def test_queries_may_be_the_last_of_a_row(queries, tokens):
  q, k, v, segments, cotangent = inputs(B=2, T=tokens)
  last = (q[:, -queries:], k, v, segments, cotangent[:, -queries:])
  assert_same(*both(last, True))


def test_bfloat16_is_nearly_as_exact_as_the_formula():
  """Root mean squares of the errors; the backward pass reads the rounded result, as those of flash attention do."""
  arrays = inputs(dtype=jnp.bfloat16)
  found, formula = both(arrays, True)
  q, k, v, segments, cotangent = arrays
  exact = both(
    [*(x.astype(jnp.float32) for x in (q, k, v)), segments, cotangent.astype(jnp.float32)], True
  )[1]
  for name, *results in zip(("mixed", "dq", "dk", "dv"), found, formula, exact, strict=True):
    blocks, whole, reference = (np.asarray(x, np.float32) for x in results)
    errors = [np.sqrt(np.mean(np.square(x - reference))) for x in (blocks, whole)]
    assert results[0].dtype == jnp.bfloat16
    assert errors[0] <= 1.3 * errors[1], name


def test_a_long_row_has_no_square_array():
  """Neither forward nor backward, in the program that CPUs get; the formula's has several."""
  tokens = 2048
  shapes = jax.eval_shape(lambda: inputs(B=1, T=tokens, N=2, K=1, H=8))

  def program(attend):
    function = jax.jit(partial(with_gradients, partial(attend, causal=True)))
    return function.lower(*shapes).compile().as_text()

  square = f"{tokens},{tokens}]"
  assert square in program(plain_attention)
  assert square not in program(flash.attention)
