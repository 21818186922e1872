"""Agreement with the label."""

import jax.numpy as jnp

from spatial_vlm.rewards.accuracy import accuracy_reward, is_correct


def test_accuracy_reward():
  verdict, label = jnp.array([1, 1, 0, 0, -1, -1, 1]), jnp.array([1, 0, 1, 0, 0, -1, -1])
  assert is_correct(verdict, label).tolist() == [True, False, False, True, False, False, False]
  assert accuracy_reward(verdict, label).tolist() == [1, -1, -1, 1, -1, -1, -1]
