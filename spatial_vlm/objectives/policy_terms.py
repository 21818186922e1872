"""What the objectives of policy optimization read of sampled answers."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class PolicyTerms(NamedTuple):
  """R answers of T tokens, as the policy, its past self and a reference policy score them."""

  logp: Float[Array, "R T"]
  """log π_θ; the only field with a gradient."""
  logp_old: Float[Array, "R T"]
  """log π_old, of the policy before the first update on this batch."""
  logp_reference: Float[Array, "R T"] | None
  """log π_ref; None where no objective reads it."""
  advantage: Float[Array, "R"]
  mask: Bool[Array, "R T"]
  """True up to and including the end-of-turn token."""


class ClipRange(NamedTuple):
  """The ratio is clipped to 1 − low … 1 + high."""

  low: float
  high: float


LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ± this many nats, as in verl: exp of more than 88.7 is infinite in float32."""


def log_ratio(
  logp: Float[Array, "R T"], logp_other: Float[Array, "R T"], mask: Bool[Array, "R T"]
) -> Float[Array, "R T"]:
  """Log π_θ − log π_other within ±LOG_RATIO_LIMIT; 0 outside `mask`, where both may be −inf (ids at padding).

  A token beyond the limit has no gradient.
  """
  difference = jnp.where(mask, logp - logp_other, 0.0)
  return jnp.clip(difference, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def is_clamped(
  logp: Float[Array, "R T"], logp_other: Float[Array, "R T"], mask: Bool[Array, "R T"]
) -> Bool[Array, "R T"]:
  """Whether `log_ratio` clamps a token's difference."""
  return mask & (jnp.abs(logp - logp_other) > LOG_RATIO_LIMIT)


def token_count(mask: Bool[Array, "R T"]) -> Int[Array, ""]:
  """Σᵢ|oᵢ|, the number of tokens in `mask`."""
  return jnp.sum(mask, dtype=jnp.int32)


def answer_count(mask: Bool[Array, "R T"]) -> Int[Array, ""]:
  """Number of answers with a token in `mask`."""
  return jnp.sum(jnp.any(mask, axis=-1), dtype=jnp.int32)
