"""DAPO: Decoupled Clip and Dynamic sAmpling Policy Optimization (arXiv 2503.14476)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.metrics import Sums


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
  adding up micro-batches and devices. Eq. 8 normalises per group; here, as in verl and TRL, over
  the mini-batch.
  """
  r = jnp.exp(_log_ratio(logp, logp_old, mask))
  A = advantage[:, None]
  gain = jnp.minimum(r * A, jnp.clip(r, 1 - eps_low, 1 + eps_high) * A)
  return jnp.sum(jnp.where(mask, gain, 0.0)), jnp.sum(mask, dtype=jnp.int32)


def overlong_penalty(
  length_tokens: Int[Array, "..."], max_tokens: int, cache_tokens: int
) -> Float[Array, "..."]:
  """R_length(y), added to the reward      (soft overlong punishment; DAPO, Eq. 13)

    0                                     |y| ≤ L_max − L_cache
    ((L_max − L_cache) − |y|) / L_cache   L_max − L_cache < |y| ≤ L_max
    −1                                    L_max < |y|

  >>> overlong_penalty(jnp.array([80, 90, 100, 101]), 100, 20).tolist()
  [0.0, -0.5, -1.0, -1.0]
  """
  free = max_tokens - cache_tokens
  soft = (free - length_tokens) / jnp.maximum(cache_tokens, 1)
  penalty = jnp.where(length_tokens <= max_tokens, soft, -1.0)
  return jnp.where(length_tokens <= free, 0.0, penalty)


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
  | kl_old         | r − 1 − log r ≥ 0, which estimates KL(π_old ‖ π_θ) (Schulman's k3)         |
  | prob           | π_θ of the sampled tokens                                                  |
  | entropy        | `entropy`, nats                                                            |
  """
  log_r = _log_ratio(logp, logp_old, mask)
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
    "kl_old": over(mask, r - 1 - log_r),
    "prob": over(mask, prob),
    "entropy": over(mask, entropy),
  }


def _log_ratio(
  logp: Float[Array, "B T"], logp_old: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B T"]:
  """log r = log π_θ − log π_old; 0 outside `mask`, where both may be −inf (banned ids at padding)."""
  return jnp.where(mask, logp - logp_old, 0.0)
