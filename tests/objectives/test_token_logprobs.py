import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm.objectives.dapo import dapo_objective
from spatial_vlm.objectives.token_logprobs import ban, token_logprobs

B, T, D, V = 3, 10, 6, 23
PAD, IMAGE = 0, 22


@pytest.fixture
def inputs():
  rng = np.random.default_rng(1)
  hidden = rng.normal(size=(B, T, D)).astype(np.float32) * 3
  unembed = rng.normal(size=(D, V)).astype(np.float32)
  tokens = rng.integers(1, V - 1, (B, T))
  tokens[1, 6:] = PAD
  forbidden_tokens = np.isin(np.arange(V), [PAD, IMAGE])
  return hidden, unembed, tokens, forbidden_tokens


@pytest.mark.parametrize("chunk", [None, 1, 4, 9, 50])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_softmax_over_the_allowed_ids(inputs, chunk, temperature):
  hidden, unembed, tokens, forbidden_tokens = inputs
  logp, entropy = jax.jit(token_logprobs, static_argnums=(4, 5))(*inputs, temperature, chunk)
  logits = (hidden.astype(np.float64) @ unembed / temperature)[..., ~forbidden_tokens]
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  full = np.zeros((B, T, V))
  full[..., ~forbidden_tokens] = p
  for b in range(B):
    for t in range(1, T):
      with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
          logp[b, t], np.log(full[b, t - 1, tokens[b, t]]), rtol=2e-5, atol=1e-5
        )
      np.testing.assert_allclose(
        entropy[b, t], -np.sum(p[b, t - 1] * np.log(p[b, t - 1])), rtol=2e-5, atol=1e-6
      )
  assert np.all(logp[:, 0] == 0) and np.all(entropy[:, 0] == 0)


def test_a_forbidden_token_is_minus_infinity_and_allowed_ones_sum_to_one(inputs):
  hidden, unembed, _, forbidden_tokens = inputs
  every = np.repeat(
    np.arange(V)[:, None], 2, axis=1
  )  # a row for each id, after the same hidden state
  rows = np.repeat(hidden[:1, :2], V, axis=0)
  logp = np.asarray(jax.jit(token_logprobs)(rows, unembed, every, forbidden_tokens)[0][:, 1])
  assert np.all(np.isneginf(logp[forbidden_tokens])) and np.all(
    np.isfinite(logp[~forbidden_tokens])
  )
  np.testing.assert_allclose(np.exp(logp).sum(), 1, rtol=1e-6)


def test_equal_to_what_a_sampler_records(inputs):
  """As the sampler does: mask forbidden tokens, divide by the temperature, log-softmax of one position."""
  hidden, unembed, tokens, forbidden_tokens = inputs
  logp, _ = jax.jit(token_logprobs, static_argnums=4)(*inputs, 1.3)
  one = jax.nn.log_softmax(ban(hidden[:, 3] @ unembed, forbidden_tokens) / 1.3)
  np.testing.assert_allclose(logp[:, 4], one[np.arange(B), tokens[:, 4]], rtol=1e-5)


@pytest.mark.parametrize("chunk", [None, 4])
def test_gradients_of_objective_and_entropy_are_finite_with_forbidden_padding(inputs, chunk):
  hidden, unembed, tokens, forbidden_tokens = inputs
  mask = jnp.asarray(tokens != PAD).at[:, :2].set(False)

  def loss(hidden, unembed):
    logp, entropy = token_logprobs(hidden, unembed, tokens, forbidden_tokens, 1.0, chunk)
    old = jax.lax.stop_gradient(logp)
    gain, count = dapo_objective(logp, old, jnp.array([1.0, -1.0, 0.5]), mask, 0.2, 0.28)
    return (gain + jnp.sum(jnp.where(mask, entropy, 0.0))) / count

  value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, unembed)
  assert np.isfinite(value)
  assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in grads)
  assert np.all(grads[1][:, forbidden_tokens] == 0) and np.all(grads[0][1, 5:] == 0)


def test_greedy_temperature_is_refused(inputs):
  with pytest.raises(ValueError, match="temperature is 0"):
    token_logprobs(*inputs, temperature=0.0)
