"""How much better an answer is than the other answers to the same prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

STD_EPS = 1e-6


def group_advantage(
  reward: Float[Array, "B G"], correct: Bool[Array, "B G"]
) -> Float[Array, "B G"]:
  """Âᵢ = (Rᵢ − mean(R)) / std(R)      (DAPO, Eq. 9)

  std is the sample standard deviation (ddof = 1), with 1e-6 added outside the root, as in verl and
  Tunix. A group whose answers are all correct or all wrong gets exactly 0. The number of correct
  answers decides that, not std(R), which a length penalty or a rounding error lifts above 0: one
  slightly long answer among right ones would be punished like a wrong one.
  """
  centred = reward - jnp.mean(reward, axis=-1, keepdims=True)
  squares = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
  std = jnp.sqrt(squares / max(reward.shape[-1] - 1, 1))
  return jnp.where(has_mixed_outcomes(correct)[..., None], centred / (std + STD_EPS), 0.0)


def has_mixed_outcomes(correct: Bool[Array, "B G"]) -> Bool[Array, "B"]:
  """0 < #{i : correct} < G: the constraint of DAPO's Eq. 8, by which dynamic sampling keeps groups."""
  number = jnp.sum(correct, axis=-1, dtype=jnp.int32)
  return (number > 0) & (number < correct.shape[-1])
