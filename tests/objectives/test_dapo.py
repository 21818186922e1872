import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import metrics
from spatial_vlm.objectives.dapo import dapo_objective, dapo_statistics

LOW, HIGH = 0.2, 0.28
gradient = jax.jit(jax.value_and_grad(lambda *x: dapo_objective(*x, LOW, HIGH), has_aux=True))
statistics = jax.jit(lambda *x: dapo_statistics(*x, LOW, HIGH))


def make_batch(seed=0, B=6, T=9):
  rng = np.random.default_rng(seed)
  logp = np.log(rng.uniform(0.05, 1, (B, T)))
  logp_old = logp - rng.normal(size=(B, T)) * 0.4
  advantage = rng.normal(size=B)
  advantage[2] = 0.0
  lengths = rng.integers(1, T, B)
  mask = np.arange(T) < lengths[:, None]
  logp[~mask] = logp_old[~mask] = -np.inf
  return logp, logp_old, advantage, mask


def oracle(logp, logp_old, advantage, mask, eps_low, eps_high):
  """Eq. 8 in plain loops and float64: the numerator, its gradient wrt logp, and the tokens."""
  total, count, gradient = 0.0, 0, np.zeros(logp.shape)
  for i in range(logp.shape[0]):
    for t in range(logp.shape[1]):
      if not mask[i, t]:
        continue
      count += 1
      r = np.exp(logp[i, t] - logp_old[i, t])
      clipped = min(max(r, 1 - eps_low), 1 + eps_high)
      total += min(r * advantage[i], clipped * advantage[i])
      if r * advantage[i] <= clipped * advantage[i]:
        gradient[i, t] = r * advantage[i]
  return total, count, gradient


def as_float32(logp, logp_old, advantage, mask):
  return *(jnp.asarray(x, jnp.float32) for x in (logp, logp_old, advantage)), jnp.asarray(mask)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eps", [(0.2, 0.28), (0.2, 0.2), (0.1, 3.0)])
def test_equals_the_oracle_in_value_and_gradient(seed, eps):
  batch = make_batch(seed)
  total, count, expected = oracle(*batch, *eps)
  objective = jax.value_and_grad(lambda *x: dapo_objective(*x, *eps), has_aux=True)
  (found, found_count), found_gradient = jax.jit(objective)(*as_float32(*batch))
  np.testing.assert_allclose(found, total, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found_gradient, expected, rtol=1e-4, atol=1e-5)
  assert found_count == count


@pytest.mark.parametrize(
  ("r", "advantage", "gain", "slope"),
  [
    (1.5, 2.0, 2.56, 0.0),  # up-clipped at 1.28
    (1.25, 2.0, 2.5, 2.5),  # between 1.2 and 1.28: free only since the clip is higher
    (0.5, 2.0, 1.0, 1.0),  # a good token that became rare is always pulled back
    (0.5, -2.0, -1.6, 0.0),  # down-clipped at 0.8
    (0.9, -2.0, -1.8, -1.8),
    (1.5, -2.0, -3.0, -3.0),  # a bad token that became likely is never clipped
    (1.0, 2.0, 2.0, 2.0),
  ],
)
def test_clip_higher_by_hand(r, advantage, gain, slope):
  row = np.log([[r]], dtype=np.float32), np.zeros((1, 1), np.float32)
  (value, _), found = gradient(*row, np.array([advantage]), np.ones((1, 1), bool))
  np.testing.assert_allclose([value, found[0, 0]], [gain, slope], rtol=1e-6)


@pytest.mark.parametrize(
  "padding", [(-np.inf, -np.inf), (-np.inf, 0.0), (0.0, -np.inf), (np.nan, 0.0)]
)
def test_nothing_at_padding_reaches_value_or_gradient(padding):
  logp, old, advantage, mask = as_float32(*make_batch(3))
  logp, old = jnp.where(mask, logp, padding[0]), jnp.where(mask, old, padding[1])
  entropy = jnp.where(mask, 1.0, jnp.nan)
  (value, _), found = gradient(logp, old, advantage, mask)
  assert np.all(np.isfinite(found)) and np.all(found[~mask] == 0)
  np.testing.assert_allclose(value, oracle(*make_batch(3), LOW, HIGH)[0], rtol=1e-5)
  sums = statistics(logp, old, advantage, mask, entropy)
  assert all(np.isfinite(total) for total, _ in sums.values())
  assert metrics.means(sums)["entropy"] == 1


def test_before_any_update_the_ratio_is_exactly_one():
  logp, _, advantage, mask = as_float32(*make_batch(1))
  objective = lambda x: dapo_objective(x, jax.lax.stop_gradient(x), advantage, mask, LOW, HIGH)[0]  # noqa: E731
  value, found = jax.jit(jax.value_and_grad(objective))(logp)
  expected = jnp.where(mask, advantage[:, None], 0.0)
  assert np.array_equal(found, expected)  # the policy gradient, to the bit
  np.testing.assert_allclose(value, expected.sum(), rtol=1e-6)
  values = metrics.means(statistics(logp, logp, advantage, mask, jnp.zeros_like(logp)))
  assert values["ratio"] == values["ratio_max"] == 1 and values["kl_old"] == 0
  assert values["clip_low"] == values["clip_high"] == 0 and "clip_high_prob" not in values


@pytest.mark.parametrize("sizes", [(1, 5), (2, 2, 2)])
def test_token_level_loss_does_not_depend_on_the_micro_batches(sizes):
  """Rows of unequal length: a mean of means would differ."""
  logp, old, advantage, mask = batch = as_float32(*make_batch(7))
  entropy = jnp.abs(jnp.where(mask, logp, 0.0))
  (total, count), whole = gradient(*batch)
  totals, counts, gradients, sums = [], [], [], {}
  ends = np.cumsum(sizes)
  for rows in (slice(end - size, end) for size, end in zip(sizes, ends, strict=True)):
    (part, part_count), part_gradient = gradient(*(x[rows] for x in batch))
    totals.append(part)
    counts.append(part_count)
    gradients.append(part_gradient)
    piece = (x[rows] for x in (logp, old, advantage, mask, entropy))
    sums = metrics.add(sums, statistics(*piece))
  assert sum(counts) == count and jnp.issubdtype(count.dtype, jnp.integer)
  np.testing.assert_allclose(sum(totals) / sum(counts), total / count, rtol=1e-6)
  np.testing.assert_allclose(np.concatenate(gradients) / sum(counts), whole / count, rtol=1e-6)
  expected = metrics.means(statistics(logp, old, advantage, mask, entropy))
  found = metrics.means(sums)
  assert found.keys() == expected.keys()
  np.testing.assert_allclose(list(found.values()), [expected[name] for name in found], rtol=1e-5)


@pytest.mark.parametrize("far", [25.0, 100.0, -25.0, np.inf])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_far_token_is_clamped_and_counted(far, advantage):
  """Without the clamp, exp(100) is infinite, and a token of a bad answer at 25 nats has a gradient of 7e10."""
  logp = jnp.array([[far, 0.1]])
  row = logp, jnp.zeros((1, 2)), jnp.array([advantage]), jnp.ones((1, 2), bool)
  (value, _), slope = gradient(*row)
  assert np.isfinite(value) and slope[0, 0] == 0 and np.isfinite(slope[0, 1])
  assert metrics.means(statistics(*row, logp))["ratio_clamped"] == 0.5


def test_statistics_by_hand():
  r = jnp.array([[1.5, 1.25, 0.5, 9.0], [0.5, 0.9, 1.5, 0.01]])
  old = jnp.log(jnp.array([[0.2, 0.4, 0.4, 0.1], [0.5, 0.5, 0.5, 0.5]]))
  mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0]], bool)
  values = metrics.means(statistics(jnp.log(r) + old, old, jnp.array([1.0, -1.0]), mask, r))
  expected = {
    "clip_low": 1 / 6,
    "clip_high": 1 / 6,
    "clip_high_prob": 0.3,
    "ratio": 6.15 / 6,
    "ratio_max": 1.5,
    "ratio_clamped": 0,
    "kl_old": (0.15 - np.log(1.5 * 1.25 * 0.5 * 0.5 * 0.9 * 1.5)) / 6,
    "prob": (0.3 + 0.5 + 0.2 + 0.25 + 0.45 + 0.75) / 6,
    "entropy": 6.15 / 6,
  }
  assert values.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
