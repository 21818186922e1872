"""Random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.benchmark.weights import random_params
from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.parameters.partition import EVERYTHING, flatten

MODEL = PRESETS["tiny"]
FROZEN = dataclasses.replace(EVERYTHING, trainable=("text/.*",), frozen_dtype="bfloat16")


@pytest.fixture(scope="module")
def drawn():
  return flatten(random_params(sharding.make_mesh({}, jax.devices()[:1]), MODEL, FROZEN, seed=0))


def test_they_have_the_shapes_of_the_model_and_the_types_of_training(drawn):
  expected = flatten(jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0))))
  assert {path: leaf.shape for path, leaf in drawn.items()} == {
    path: leaf.shape for path, leaf in expected.items()
  }
  for path, leaf in drawn.items():
    assert leaf.dtype == (jnp.float32 if path.startswith("text/") else jnp.bfloat16), path


def test_kernels_have_variance_one_over_fan_in_and_norms_are_near_one(drawn):
  down = np.asarray(drawn["text/layers/mlp/down_proj/kernel"])
  assert down.std() == pytest.approx(MODEL.text.intermediate_size**-0.5, rel=0.02)
  assert not np.array_equal(down[0], down[1])  # every layer has its own
  scale = np.asarray(drawn["text/layers/input_norm/scale"])
  assert scale.mean() == pytest.approx(1, abs=0.05)


def test_the_seed_decides(drawn):
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  again, other = (flatten(random_params(mesh, MODEL, FROZEN, seed)) for seed in (0, 1))
  path = "vision/patch_embed/proj/kernel"
  np.testing.assert_array_equal(drawn[path], again[path])
  assert not np.array_equal(drawn[path], other[path])
