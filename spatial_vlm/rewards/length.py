"""Preference for the shorter of the answers to one prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def length_reward(
  length_tokens: Int[Array, "B G"], correct: Bool[Array, "B G"]
) -> Float[Array, "B G"]:
  """R_length(yᵢ), added to the reward      (length penalty; Kimi k1.5, arXiv 2501.12599, Section 2.3.3)

    λᵢ = 1/2 − (|yᵢ| − min |y|) / (max |y| − min |y|)     over the G answers to a prompt
    λᵢ           where yᵢ is correct
    min(0, λᵢ)   where it is not: a short wrong answer is not rewarded
    0            where all answers are equally long

  >>> length_reward(jnp.array([[10, 20, 30, 10]]), jnp.array([[True, True, True, False]])).tolist()
  [[0.5, 0.0, -0.5, 0.0]]
  """
  least = jnp.min(length_tokens, axis=1, keepdims=True)
  spread = jnp.max(length_tokens, axis=1, keepdims=True) - least
  preference = 0.5 - (length_tokens - least) / jnp.maximum(spread, 1)
  reward = jnp.where(correct, preference, jnp.minimum(preference, 0.0))
  return jnp.where(spread > 0, reward, 0.0)
