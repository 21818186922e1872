"""The rewards by name; a config chooses and weights them.

rewards=(("accuracy", 1.0), ("overlong", 1.0))      DAPO: accuracy (±1) plus the overlong punishment
rewards=(("accuracy", 1.0), ("overlong", 1.0), ("length", 0.5))      prefers the shorter correct answers too
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from spatial_vlm.config import Weighted
from spatial_vlm.rewards.accuracy import accuracy_reward, is_correct
from spatial_vlm.rewards.length import length_reward
from spatial_vlm.rewards.overlong import overlong_penalty


class RewardTerms(NamedTuple):
  """What a reward reads of G answers to each of B prompts."""

  verdict: Int[Array, "B G"]
  """Number of the choice (1 yes, 0 no); −1 where the answer does not parse or was cut off."""
  label: Int[Array, "B 1"]
  length_tokens: Int[Array, "B G"]
  max_new_tokens: int
  overlong_cache_tokens: int


REWARDS: dict[str, Callable[[RewardTerms], Float[Array, "B G"]]] = {
  "accuracy": lambda t: accuracy_reward(t.verdict, t.label),
  "overlong": lambda t: overlong_penalty(
    t.length_tokens, t.max_new_tokens, t.overlong_cache_tokens
  ),
  "length": lambda t: length_reward(t.length_tokens, is_correct(t.verdict, t.label)),
}


def weighted_reward(rewards: Weighted, terms: RewardTerms) -> Float[Array, "B G"]:
  """Σ_k w_k · R_k."""
  total, *others = (weight * REWARDS[name](terms) for name, weight in rewards)
  return sum(others, start=total)
