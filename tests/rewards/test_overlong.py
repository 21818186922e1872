"""Soft overlong punishment."""

import jax.numpy as jnp
import pytest

from spatial_vlm.rewards.overlong import overlong_penalty


@pytest.mark.parametrize(
  ("length", "penalty"),
  [(0, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (20481, -1), (99999, -1)],
)
def test_overlong_penalty_of_the_paper(length, penalty):
  """L_max 20480, L_cache 4096."""
  assert float(overlong_penalty(jnp.array(length), 20480, 4096)) == penalty


def test_overlong_penalty_without_a_soft_range():
  assert overlong_penalty(jnp.array([[1, 64], [65, 70]]), 64, 0).tolist() == [[0, 0], [-1, -1]]
