"""The table of objectives: choice, weights and divisors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm.objectives.dapo import dapo_objective
from spatial_vlm.objectives.gspo import gspo_objective
from spatial_vlm.objectives.kl import kl_to_reference
from spatial_vlm.objectives.policy_objectives import (
  OBJECTIVES,
  check_objectives,
  objective_counts,
  reads_reference,
  weighted_gain,
)
from spatial_vlm.objectives.policy_terms import ClipRange, PolicyTerms

CLIP = ClipRange(0.2, 0.28)


def terms(rows=6, length=5):
  rng = np.random.default_rng(0)
  logp, old, reference = jnp.log(jnp.asarray(rng.uniform(0.1, 1, (3, rows, length)), jnp.float32))
  mask = jnp.asarray(np.arange(length) < rng.integers(1, length + 1, rows)[:, None])
  return PolicyTerms(logp, old, reference, jnp.asarray(rng.normal(size=rows), jnp.float32), mask)


def value(objectives, t):
  """What the training step maximises: the weighted sum, divided once."""
  counts = objective_counts(objectives, t.mask)
  return weighted_gain(objectives, t, CLIP, counts)[0] / counts["tokens"]


def expected_means(t):
  clipped = (t.logp, t.logp_old, t.advantage, t.mask, *CLIP)
  sums = {"dapo": dapo_objective(*clipped), "gspo": gspo_objective(*clipped)}
  kl, tokens = kl_to_reference(t.logp, t.logp_reference, t.mask)
  sums["kl_reference"] = (-kl, tokens)
  return {name: float(total / count) for name, (total, count) in sums.items()}


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_each_is_the_mean_of_its_equation(name):
  t = terms()
  np.testing.assert_allclose(value(((name, 1.0),), t), expected_means(t)[name], rtol=1e-5)


def test_weighted_means_add_up():
  t, chosen = terms(), (("gspo", 1.0), ("kl_reference", 0.25), ("dapo", 2.0))
  means = expected_means(t)
  expected = sum(weight * means[name] for name, weight in chosen)
  np.testing.assert_allclose(value(chosen, t), expected, rtol=1e-5)


def test_dapo_alone_is_the_plain_sum_bit_for_bit():
  t = terms()
  gain = jax.jit(
    lambda t: weighted_gain((("dapo", 1.0),), t, CLIP, objective_counts((), t.mask))[0]
  )
  plain = jax.jit(lambda t: dapo_objective(t.logp, t.logp_old, t.advantage, t.mask, *CLIP)[0])
  assert gain(t) == plain(t)


def test_pieces_of_a_mini_batch_add_up_to_the_whole():
  """Divisors are those of the whole mini-batch, so the cut into micro-batches does not matter."""
  t, chosen = terms(), (("gspo", 1.0), ("dapo", 1.0))
  counts = objective_counts(chosen, t.mask)
  whole, _ = weighted_gain(chosen, t, CLIP, counts)
  pieces = [jax.tree.map(lambda x, rows=rows: x[rows], t) for rows in (slice(0, 2), slice(2, 6))]
  parts = [weighted_gain(chosen, piece, CLIP, counts)[0] for piece in pieces]
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


@pytest.mark.parametrize(
  ("objectives", "message"),
  [
    ((), "objectives is empty"),
    ((("ppo", 1.0),), "names 'ppo'; known are dapo, gspo, kl_reference"),
    ((("dapo", 0.0),), "a weight is above 0"),
    ((("dapo", float("nan")),), "a weight is above 0"),
  ],
)
def test_invalid_choices_are_refused(objectives, message):
  with pytest.raises(ValueError, match=message):
    check_objectives(objectives)


def test_only_the_penalty_reads_a_reference():
  assert not reads_reference((("dapo", 1.0), ("gspo", 1.0)))
  assert reads_reference((("dapo", 1.0), ("kl_reference", 0.1)))
