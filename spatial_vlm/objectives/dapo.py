"""DAPO: Decoupled Clip and Dynamic sAmpling Policy Optimization (arXiv 2503.14476)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.metrics import Sums
from spatial_vlm.objectives.policy_terms import is_clamped, log_ratio, token_count


def dapo_objective(
  logp: Float[Array, "B T"],
  logp_old: Float[Array, "B T"],
  advantage: Float[Array, "B"],
  mask: Bool[Array, "B T"],
  eps_low: float,
  eps_high: float,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """J(θ) = 1/Σᵢ|oᵢ| · Σᵢ Σₜ min(rᵢₜ Âᵢ, clip(rᵢₜ, 1−ε_low, 1+ε_high) Âᵢ)      (DAPO, Eq. 8)

  Returns the double sum, to be maximised, and Σᵢ|oᵢ|, the tokens in `mask`; divide once, after
  adding up micro-batches and devices. Eq. 8 normalises per group; here the divisor is the mini-batch's
  number of tokens. verl divides by it only where it is given a global count (its FSDP actor otherwise
  averages the means of micro-batches), TRL by the tokens of the whole generation batch.
  """
  r = jnp.exp(log_ratio(logp, logp_old, mask))
  A = advantage[:, None]
  gain = jnp.minimum(r * A, jnp.clip(r, 1 - eps_low, 1 + eps_high) * A)
  return jnp.sum(jnp.where(mask, gain, 0.0)), token_count(mask)


def dapo_statistics(
  logp: Float[Array, "B T"],
  logp_old: Float[Array, "B T"],
  advantage: Float[Array, "B"],
  mask: Bool[Array, "B T"],
  entropy: Float[Array, "B T"],
  eps_low: float,
  eps_high: float,
) -> Sums:
  """What to watch while the policy moves, over the tokens in `mask`; add with `metrics.add`.

  | name           | mean of, or share of tokens                                                |
  |----------------|----------------------------------------------------------------------------|
  | clip_low       | clipped, without gradient: r < 1 − ε_low and Â < 0                         |
  | clip_high      | clipped, without gradient: r > 1 + ε_high and Â > 0                        |
  | clip_high_prob | π_θ of the tokens counted by clip_high (Fig. 3a)                           |
  | ratio          | r; `ratio_max` is its maximum                                              |
  | ratio_clamped  | clamped, without gradient: |log r| > LOG_RATIO_LIMIT                        |
  | kl_old         | r − 1 − log r ≥ 0, which estimates KL(π_old ‖ π_θ) (Schulman's k3)         |
  | prob           | π_θ of the sampled tokens                                                  |
  | entropy        | `entropy`, nats                                                            |
  """
  log_r = log_ratio(logp, logp_old, mask)
  r = jnp.exp(log_r)
  prob = jnp.exp(jnp.where(mask, logp, -jnp.inf))
  A = advantage[:, None]
  low = (r < 1 - eps_low) & (A < 0)
  high = (r > 1 + eps_high) & (A > 0)

  def over(tokens: Bool[Array, "B T"], values: Array) -> tuple[Array, Array]:
    return jnp.sum(jnp.where(tokens, values, 0.0)), jnp.sum(tokens, dtype=jnp.int32)

  return {
    "clip_low": over(mask, low),
    "clip_high": over(mask, high),
    "clip_high_prob": over(mask & high, prob),
    "ratio": over(mask, r),
    "ratio_max": (jnp.max(jnp.where(mask, r, 0.0)), jnp.any(mask).astype(jnp.int32)),
    "ratio_clamped": over(mask, is_clamped(logp, logp_old, mask)),
    "kl_old": over(mask, r - 1 - log_r),
    "prob": over(mask, prob),
    "entropy": over(mask, entropy),
  }
