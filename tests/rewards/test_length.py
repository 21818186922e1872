"""The preference for the shorter of the answers to one prompt."""

import numpy as np

from spatial_vlm.rewards.length import length_reward
from spatial_vlm.rewards.table import REWARDS, RewardTerms, weighted_reward

LENGTHS = np.array([[10, 20, 30, 10], [7, 7, 7, 7], [4, 8, 8, 6]])
CORRECT = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 0]], bool)
EXPECTED = [[0.5, 0, -0.5, 0], [0, 0, 0, 0], [0, -0.5, -0.5, 0]]
"""By hand; each group has its own shortest and longest answer, whether right or wrong."""


def test_length_reward_by_hand():
  np.testing.assert_allclose(length_reward(LENGTHS, CORRECT), EXPECTED)


def test_a_correct_answer_stays_above_every_wrong_one():
  """With DAPO's ±1 for correctness, whatever the lengths."""
  lengths = np.random.default_rng(0).integers(1, 200, (64, 8))
  correct = np.arange(8)[None] % 2 == 0
  total = np.asarray(length_reward(lengths, np.broadcast_to(correct, (64, 8)))) + 2 * correct - 1
  assert total[:, ::2].min() >= 0.5 and total[:, 1::2].max() <= -1


def test_it_is_a_reward_of_the_table_that_no_preset_of_dapo_weights_by_default():
  terms = RewardTerms(
    verdict=np.where(CORRECT, 1, 0),
    label=np.ones((3, 1), int),
    length_tokens=LENGTHS,
    max_new_tokens=100,
    overlong_cache_tokens=10,
  )
  assert "length" in REWARDS
  found = weighted_reward((("accuracy", 1.0), ("length", 0.5)), terms)
  np.testing.assert_allclose(found, 2 * CORRECT - 1 + 0.5 * np.array(EXPECTED))
