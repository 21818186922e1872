import jax
import jax.numpy as jnp
import numpy as np

from spatial_vlm.objectives.advantage import group_advantage, has_mixed_outcomes

advantage = jax.jit(group_advantage)


def test_equals_numpy_with_the_sample_standard_deviation():
  rng = np.random.default_rng(0)
  correct = rng.random((50, 8)) < 0.5
  correct[:, 0], correct[:, 1] = True, False
  reward = 2.0 * correct - 1 - rng.random((50, 8)) * (rng.random((50, 8)) < 0.3)
  found = advantage(jnp.asarray(reward, jnp.float32), correct)
  expected = (reward - reward.mean(1, keepdims=True)) / (
    reward.std(1, ddof=1, keepdims=True) + 1e-6
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_by_hand():
  reward = jnp.array([[1.0, -1.0, -1.0, -1.0]])  # mean −1/2, squares 9/4 + 3/4, sample variance 1
  np.testing.assert_allclose(advantage(reward, reward > 0), [[1.5, -0.5, -0.5, -0.5]], rtol=2e-6)


def test_degenerate_groups_are_exactly_zero_whatever_their_std():
  """All are right and one is a little long: divided by the std, that one would get −3.75, like a real error."""
  reward = jnp.ones((1, 16)).at[0, 3].set(0.99)
  assert np.all(advantage(reward, jnp.ones((1, 16), bool)) == 0)
  assert np.all(advantage(reward - 2, jnp.zeros((1, 16), bool)) == 0)
  assert np.all(advantage(jnp.full((3, 7), 0.1), jnp.ones((3, 7), bool)) == 0)


def test_a_single_sample_teaches_nothing():
  assert np.all(advantage(jnp.array([[1.0], [-1.0]]), jnp.array([[True], [False]])) == 0)


def test_mixed_outcomes_are_neither_all_right_nor_all_wrong():
  correct = jnp.array([[1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]], bool)
  assert has_mixed_outcomes(correct).tolist() == [False, False, True, True]
