"""KL to a reference policy, by Schulman's k3."""

import jax
import jax.numpy as jnp
import numpy as np

from spatial_vlm.objectives.kl import kl_to_reference


def test_equals_the_formula_over_the_mask_and_is_never_negative():
  rng = np.random.default_rng(0)
  logp, reference = np.log(rng.uniform(0.05, 1, (2, 5, 7)))
  mask = np.arange(7) < rng.integers(0, 8, 5)[:, None]
  u = np.exp(reference - logp)
  terms = u - 1 - np.log(u)
  assert (terms >= 0).all()
  logp[~mask] = reference[~mask] = -np.inf
  found, count = kl_to_reference(jnp.asarray(logp), jnp.asarray(reference), jnp.asarray(mask))
  np.testing.assert_allclose(found, terms[mask].sum(), rtol=1e-5)
  assert count == mask.sum()


def test_a_token_far_from_the_reference_is_finite():
  logp, mask = jnp.array([[-95.0, -1.0]]), jnp.ones((1, 2), bool)
  (kl, _), slope = jax.value_and_grad(kl_to_reference, has_aux=True)(logp, jnp.zeros((1, 2)), mask)
  np.testing.assert_allclose(kl, np.exp(20) - 21 + np.exp(1) - 2, rtol=1e-5)
  assert slope[0, 0] == 0


def test_its_mean_over_samples_is_the_divergence():
  """E[k3] under π_θ is KL(π_θ ‖ π_ref): here exactly, by summing over all tokens with their probabilities."""
  rng = np.random.default_rng(1)
  p, q = (x / x.sum() for x in rng.uniform(0.1, 1, (2, 6)))
  each = [
    float(
      kl_to_reference(jnp.log(p[i])[None, None], jnp.log(q[i])[None, None], jnp.ones((1, 1), bool))[
        0
      ]
    )
    for i in range(6)
  ]
  np.testing.assert_allclose((p * each).sum(), (p * np.log(p / q)).sum(), rtol=1e-5)


def test_the_gradient_vanishes_at_the_reference_and_at_padding():
  logp = jnp.log(jnp.array([[0.2, 0.5, 0.9]]))
  mask = jnp.array([[True, True, False]])
  total = jax.grad(lambda x: kl_to_reference(x, logp, mask)[0])
  np.testing.assert_array_equal(total(logp), 0)
  moved = total(logp + 0.5)
  assert (moved[0, :2] > 0).all() and moved[0, 2] == 0
