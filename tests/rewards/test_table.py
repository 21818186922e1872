"""The table of rewards: choice and weights."""

import jax.numpy as jnp
import pytest

from spatial_vlm.rewards.table import RewardTerms, check_rewards, weighted_reward

TERMS = RewardTerms(
  verdict=jnp.array([[1, 0, -1, 1]]),
  label=jnp.array([[1]]),
  length_tokens=jnp.array([[10, 10, 10, 95]]),
  max_new_tokens=100,
  overlong_cache_tokens=20,
)


@pytest.mark.parametrize(
  ("rewards", "expected"),
  [
    ((("accuracy", 1.0),), [1, -1, -1, 1]),
    ((("overlong", 1.0),), [0, 0, 0, -0.75]),
    ((("accuracy", 1.0), ("overlong", 1.0)), [1, -1, -1, 0.25]),
    ((("accuracy", 2.0), ("overlong", 4.0)), [2, -2, -2, -1]),
  ],
)
def test_rewards_are_added_by_weight(rewards, expected):
  assert weighted_reward(rewards, TERMS).tolist() == [expected]


@pytest.mark.parametrize(
  ("rewards", "message"),
  [((), "rewards is empty"), ((("style", 1.0),), "names 'style'; known are accuracy, overlong")],
)
def test_invalid_choices_are_refused(rewards, message):
  with pytest.raises(ValueError, match=message):
    check_rewards(rewards)
