"""Distance of the policy from a frozen reference policy."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.objectives.policy_terms import log_ratio, token_count


def kl_to_reference(
  logp: Float[Array, "R T"], logp_reference: Float[Array, "R T"], mask: Bool[Array, "R T"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """KL(π_θ ‖ π_ref) ≈ 1/N · Σ (u − 1 − log u),  u = π_ref / π_θ      (k3; Schulman 2020, GRPO Eq. 4)

  Returns the sum over the tokens in `mask`, each term ≥ 0, and N, their number.
  """
  log_u = -log_ratio(logp, logp_reference, mask)
  return jnp.sum(jnp.exp(log_u) - 1 - log_u), token_count(mask)
