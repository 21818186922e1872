"""GSPO: Group Sequence Policy Optimization (arXiv 2507.18071)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.objectives.policy_terms import answer_count, log_ratio


def gspo_objective(
  logp: Float[Array, "R T"],
  logp_old: Float[Array, "R T"],
  advantage: Float[Array, "R"],
  mask: Bool[Array, "R T"],
  eps_low: float,
  eps_high: float,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """J(θ) = 1/R · Σᵢ min(sᵢ Âᵢ, clip(sᵢ, 1−ε_low, 1+ε_high) Âᵢ)      (GSPO, Eq. 5)

    sᵢ = (π_θ(oᵢ) / π_old(oᵢ))^(1/|oᵢ|) = exp(1/|oᵢ| · Σₜ log rᵢₜ)      (GSPO, Eq. 7)

  Returns the sum over answers, to be maximised, and the number of answers with a token in `mask`.
  """
  length = jnp.sum(mask, axis=-1)
  s = jnp.exp(jnp.sum(log_ratio(logp, logp_old, mask), axis=-1) / jnp.maximum(length, 1))
  gain = jnp.minimum(s * advantage, jnp.clip(s, 1 - eps_low, 1 + eps_high) * advantage)
  return jnp.sum(jnp.where(length > 0, gain, 0.0)), answer_count(mask)
