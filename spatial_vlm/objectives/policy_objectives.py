"""The objectives of policy optimization by name; a config chooses and weights them.

objectives=(("dapo", 1.0),)                             DAPO
objectives=(("gspo", 1.0),)                             GSPO
objectives=(("dapo", 1.0), ("kl_reference", 0.01))      DAPO with a penalty on KL(π_θ ‖ π_ref)
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.config import UsageError, Weighted, check_names
from spatial_vlm.objectives.dapo import dapo_objective
from spatial_vlm.objectives.gspo import gspo_objective
from spatial_vlm.objectives.kl import kl_to_reference
from spatial_vlm.objectives.policy_terms import ClipRange, PolicyTerms, answer_count, token_count

Gain = tuple[Float[Array, ""], Int[Array, ""]]
"""A sum to be maximised, and its divisor."""


@dataclasses.dataclass(frozen=True)
class Objective:
  """A function to be maximised, and what its sum is divided by."""

  gain: Callable[[PolicyTerms, ClipRange], Gain]
  """The equation: the sum over the rows that it is given, and the number that the sum is divided by."""
  count: Callable[[Bool[Array, "R T"]], Int[Array, ""]]
  """The same number from the mask alone, for a whole mini-batch."""
  reads_reference: bool = False


def _dapo(t: PolicyTerms, clip: ClipRange) -> Gain:
  return dapo_objective(t.logp, t.logp_old, t.advantage, t.mask, *clip)


def _gspo(t: PolicyTerms, clip: ClipRange) -> Gain:
  return gspo_objective(t.logp, t.logp_old, t.advantage, t.mask, *clip)


def _kl_reference(t: PolicyTerms, clip: ClipRange) -> Gain:
  assert t.logp_reference is not None
  kl, count = kl_to_reference(t.logp, t.logp_reference, t.mask)
  return -kl, count


OBJECTIVES = {
  "dapo": Objective(_dapo, token_count),
  "gspo": Objective(_gspo, answer_count),
  "kl_reference": Objective(_kl_reference, token_count, reads_reference=True),
}


def check_objectives(objectives: Weighted) -> None:
  """Raises UsageError for an unknown name, a weight that is not positive, or an empty choice."""
  check_names("objectives", objectives, OBJECTIVES)
  for name, weight in objectives:
    if not weight > 0:
      raise UsageError(f"objectives weights {name!r} by {weight}; a weight is above 0")


def reads_reference(objectives: Weighted) -> bool:
  """Whether one of the objectives compares the policy with a reference policy."""
  return any(OBJECTIVES[name].reads_reference for name, _ in objectives)


def weighted_gain(
  objectives: Weighted, terms: PolicyTerms, clip: ClipRange, counts: dict[str, Int[Array, ""]]
) -> tuple[Float[Array, ""], dict[str, Gain]]:
  """Σ_k w_k · N/N_k · Σ gain_k over these rows, and each Σ gain_k with its divisor; N counts tokens.

  The caller divides by N after the last micro-batch: the result is Σ_k w_k · (Σ gain_k) / N_k.

  Args:
    counts: `objective_counts` of the whole mini-batch, of which `terms` may be a part.
  """
  gains = {name: OBJECTIVES[name].gain(terms, clip) for name, _ in objectives}
  total, *others = (w * _per_token(gains[name][0], name, counts) for name, w in objectives)
  return sum(others, start=total), gains


def _per_token(gain: Float[Array, ""], name: str, counts: dict[str, Int[Array, ""]]) -> Array:
  if OBJECTIVES[name].count is token_count:
    return gain
  return gain * (counts["tokens"] / jnp.maximum(counts[name], 1))


def objective_counts(objectives: Weighted, mask: Bool[Array, "R T"]) -> dict[str, Int[Array, ""]]:
  """N_k of each objective over a whole mini-batch, and its number of `tokens`."""
  counts = {name: OBJECTIVES[name].count(mask) for name, _ in objectives}
  return counts | {"tokens": token_count(mask)}
