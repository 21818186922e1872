"""GSPO's sequence ratio."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm.objectives.gspo import gspo_objective

LOW, HIGH = 0.05, 0.08


def make_batch(seed, rows=7, length=9):
  """Answers of different lengths, one of them empty; −inf at padding, as the trainer scores forbidden ids."""
  rng = np.random.default_rng(seed)
  logp = np.log(rng.uniform(0.05, 1, (rows, length)))
  logp_old = logp - rng.normal(size=(rows, length)) * 0.4
  lengths = rng.integers(1, length, rows)
  lengths[3] = 0
  mask = np.arange(length) < lengths[:, None]
  logp[~mask] = logp_old[~mask] = -np.inf
  return logp, logp_old, rng.normal(size=rows), mask


def oracle(logp, logp_old, advantage, mask):
  """Eqs. 5 and 7 in plain loops and float64: the sum, its gradient wrt logp, and the number of answers."""
  total, count, gradient = 0.0, 0, np.zeros(logp.shape)
  for i in range(len(logp)):
    n = mask[i].sum()
    if not n:
      continue
    count += 1
    s = np.exp(sum(logp[i, t] - logp_old[i, t] for t in np.flatnonzero(mask[i])) / n)
    clipped = min(max(s, 1 - LOW), 1 + HIGH)
    total += min(s * advantage[i], clipped * advantage[i])
    if s * advantage[i] <= clipped * advantage[i]:
      gradient[i, mask[i]] = s * advantage[i] / n
  return total, count, gradient


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_oracle_in_value_and_gradient(seed):
  logp, logp_old, advantage, mask = make_batch(seed)
  total, count, expected = oracle(logp, logp_old, advantage, mask)
  arrays = (*(jnp.asarray(x, jnp.float32) for x in (logp, logp_old, advantage)), jnp.asarray(mask))
  objective = jax.value_and_grad(lambda *x: gspo_objective(*x, LOW, HIGH), has_aux=True)
  (found, found_count), gradient = jax.jit(objective)(*arrays)
  np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
  assert found_count == count == 6


def test_one_ratio_serves_all_tokens_of_an_answer():
  """One distant token is averaged over its answer: DAPO would clip it alone, GSPO clips the whole answer or nothing."""
  logp = jnp.array([[-1.0, -1.0, -1.0, -1.0]])
  logp_old = logp - jnp.array([[0.2, 0.0, 0.0, 0.0]])
  mask = jnp.ones((1, 4), bool)
  total, _ = gspo_objective(logp, logp_old, jnp.ones(1), mask, 0.2, 0.28)
  np.testing.assert_allclose(total, np.exp(0.05), rtol=1e-6)
