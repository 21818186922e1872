import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spatial_vlm.objectives.cross_entropy import token_cross_entropy

B, T, D, V = 3, 13, 8, 37


@pytest.fixture
def inputs():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(B, T, D)).astype(np.float32) * 3
  unembed = rng.normal(size=(D, V)).astype(np.float32)
  tokens = rng.integers(0, V, (B, T))
  targets = rng.random((B, T)) < 0.6
  targets[:, 0] = True  # never a target, even if the mask is True
  targets[1] = False  # a row without targets
  return hidden, unembed, tokens, targets


def plain(hidden, unembed, tokens, targets):
  """The formula without chunks."""
  logp = jax.nn.log_softmax(hidden[:, :-1] @ unembed)
  picked = logp[np.arange(B)[:, None], np.arange(T - 1), tokens[:, 1:]]
  return -jnp.sum(picked * targets[:, 1:]), targets[:, 1:].sum()


@pytest.mark.parametrize("chunk", [1, 4, 6, 11, 12, 13, 1000])
def test_every_chunk_gives_the_plain_formula_and_its_gradients(inputs, chunk):
  hidden, unembed, tokens, targets = inputs

  def mean(function, hidden, unembed):
    total, count = function(hidden, unembed, tokens, targets)
    return total / count

  expected = jax.jit(jax.value_and_grad(lambda *x: mean(plain, *x), (0, 1)))(hidden, unembed)
  chunked = lambda *x: token_cross_entropy(*x, chunk)  # noqa: E731
  found = jax.jit(jax.value_and_grad(lambda *x: mean(chunked, *x), (0, 1)))(hidden, unembed)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_agrees_with_torch(inputs):
  hidden, unembed, tokens, targets = inputs
  total, count = token_cross_entropy(*(jnp.asarray(x) for x in inputs), chunk=5)
  logits = torch.tensor(hidden[:, :-1] @ unembed)
  labels = torch.tensor(np.where(targets, tokens, -100)[:, 1:])
  expected = torch.nn.functional.cross_entropy(
    logits.reshape(-1, V), labels.reshape(-1), reduction="sum"
  )
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  assert int(count) == int((labels != -100).sum()) and jnp.issubdtype(count.dtype, jnp.integer)


def test_logits_of_a_whole_batch_never_exist(inputs):
  hidden, unembed, tokens, targets = inputs
  loss = lambda *x: token_cross_entropy(*x, tokens, targets, 4)[0]  # noqa: E731
  program = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, unembed).as_text()
  assert f"tensor<{B}x4x{V}xf32>" in program
  assert f"tensor<{B}x12x{V}xf32>" not in program and f"tensor<3x{B}x4x{V}xf32>" not in program


def test_bfloat16_is_summed_in_float32():
  hidden = jnp.zeros((4, 513, 4), jnp.bfloat16)
  tokens = jnp.zeros((4, 513), jnp.int32)
  total, count = token_cross_entropy(
    hidden, jnp.ones((4, 10), jnp.bfloat16), tokens, tokens == 0, 64
  )
  assert total.dtype == jnp.float32 and count == 2048
  np.testing.assert_allclose(total, 2048 * np.log(10), rtol=1e-5)


def test_a_chunk_of_zero_is_refused(inputs):
  with pytest.raises(ValueError, match="chunk is 0"):
    token_cross_entropy(*inputs, chunk=0)
