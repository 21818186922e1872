"""Soft punishment of answers that come close to the limit of tokens."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def overlong_penalty(
  length_tokens: Int[Array, "..."], max_new_tokens: int, cache_tokens: int
) -> Float[Array, "..."]:
  """R_length(y), added to the reward      (soft overlong punishment; DAPO, Eq. 13)

    0                                     |y| ≤ L_max − L_cache
    ((L_max − L_cache) − |y|) / L_cache   L_max − L_cache < |y| ≤ L_max
    −1                                    L_max < |y|

  >>> overlong_penalty(jnp.array([80, 90, 100, 101]), 100, 20).tolist()
  [0.0, -0.5, -1.0, -1.0]
  """
  free = max_new_tokens - cache_tokens
  soft = (free - length_tokens) / jnp.maximum(cache_tokens, 1)
  penalty = jnp.where(length_tokens <= max_new_tokens, soft, -1.0)
  return jnp.where(length_tokens <= free, 0.0, penalty)
