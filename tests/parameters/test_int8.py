"""Kernels in int8: rounding, sharding and memory."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_folders import read_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatial_vlm import sharding
from spatial_vlm.huggingface.weights import abstract_params
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.model.config import PRESETS
from spatial_vlm.parameters import int8
from spatial_vlm.parameters.int8 import dequantize, quantize_rows, row_scales
from spatial_vlm.parameters.partition import Subset, flatten, partition
from spatial_vlm.parameters.paths import INT8, sibling, split_axes

PAIRS = Subset((".*/lora_[ab]",), 2, 4.0, ("text/layers/.*_proj/kernel",), "bfloat16", True)

WEIGHTS = st.floats(width=32, allow_nan=False, min_value=-(2.0**100), max_value=2.0**100)


@given(arrays(np.float32, (3, 7), elements=WEIGHTS))
def test_no_weight_moves_by_more_than_half_a_step(rows):
  q, s = quantize_rows(rows), row_scales(rows).astype(np.float64)
  assert np.abs(q.astype(int)).max() <= 127
  assert (np.abs(rows - s * q) <= s / 2).all()
  np.testing.assert_allclose(
    s[:, 0], np.maximum(np.abs(rows.astype(np.float64)).max(axis=1) / 127, 2.0**-126), rtol=2**-8
  )


def test_steps_by_hand():
  """The largest weight of a row determines its step; the step is a bfloat16 number; w and −w round symmetrically."""
  step = 2.0**-5
  rows = np.array([[127, -127, 3.4, -3.4, 3.6], [0, 0, 0, 0, 0], [254, 1, 3.1, 0, -254]])
  rows = (rows * step).astype(np.float32)
  np.testing.assert_array_equal(
    quantize_rows(rows), [[127, -127, 3, -3, 4], [0] * 5, [127, 0, 2, 0, -127]]
  )
  np.testing.assert_array_equal(
    row_scales(rows)[:, 0], np.float32([step, np.finfo(np.float32).tiny, 2 * step])
  )
  some = np.random.default_rng(0).normal(size=(50, 20)).astype(np.float32)
  scales = row_scales(some)
  np.testing.assert_array_equal(scales, scales.astype(ml_dtypes.bfloat16).astype(np.float32))
  assert np.abs(quantize_rows(some)).max(axis=1).min() == 127


def test_a_kernel_is_rounded_once_to_the_type_of_the_computation():
  q = np.arange(-127, 128, dtype=np.int8)[:, None]
  scale = row_scales(np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)).T
  exact = q.astype(np.float64) * scale
  for dtype in (np.float32, ml_dtypes.bfloat16):
    params = {"kernel_int8": jnp.asarray(q), "kernel_scale": jnp.asarray(scale, dtype)}
    found = dequantize({"a": {**params, "bias": 1}, "b": 2})
    assert found["a"].keys() == {"kernel", "bias"} and found["b"] == 2
    np.testing.assert_array_equal(found["a"]["kernel"], exact.astype(dtype))


@pytest.fixture(scope="module")
def plain(nano):
  return flatten(read_checkpoint(nano)[1])


def read(nano, shape):
  count = np.prod(list(shape.values()))
  mesh = sharding.make_mesh(shape, jax.devices()[:count])
  return mesh, load_policy(str(nano), mesh=mesh, subset=PAIRS).params


def test_every_kernel_is_read_in_int8_and_nothing_else_is(nano, plain):
  _, params = read(nano, {"data": 1, "fsdp": 1, "tensor": 1})
  found, made = flatten(params), flatten(dequantize(params))
  assert made.keys() == plain.keys()
  assert not any(path.endswith("/kernel") for path in found)
  for path, weight in plain.items():
    if not path.endswith("/kernel"):
      assert found[path].dtype == "bfloat16"
      np.testing.assert_array_equal(found[path], weight.astype("bfloat16"))
      continue
    q, scale = (found[sibling(path, name)] for name in INT8)
    assert (q.dtype, scale.dtype) == ("int8", "float32")
    leading, inputs, outputs = split_axes(path, weight.shape)
    inner = tuple(range(len(leading), len(leading) + len(inputs)))
    step = np.abs(weight).max(axis=inner, keepdims=True) / 127
    assert scale.shape == step.shape and scale.size == np.prod((*leading, *outputs)), path
    np.testing.assert_allclose(scale, step, rtol=2**-8, err_msg=path)
    assert (np.abs(made[path] - weight) <= np.asarray(scale) * 0.500001).all(), path


def test_quantized_shards_on_any_axis_equal_the_whole(nano):
  """The scale is of the whole row of inputs, even if a device has a part of it."""
  _, whole = read(nano, {"data": 1, "fsdp": 1, "tensor": 1})
  mesh, cut = read(nano, {"data": 1, "fsdp": 4, "tensor": 2})
  expected, where = flatten(whole), flatten(sharding.param_shardings(mesh, cut))
  inputs_cut = 0
  for path, leaf in flatten(cut).items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
    assert leaf.sharding.is_equivalent_to(where[path], leaf.ndim)
    if path.endswith("/kernel_int8"):
      kernel = path.removesuffix("_int8")
      scale = where[f"{kernel}_scale"].shard_shape(flatten(cut)[f"{kernel}_scale"].shape)
      leading, inputs, outputs = split_axes(kernel, where[path].shard_shape(leaf.shape))
      assert scale == (*leading, *(1 for _ in inputs), *outputs), path
      inputs_cut += inputs != split_axes(kernel, leaf.shape)[1]
  assert inputs_cut > 10


@pytest.mark.parametrize(
  ("preset", "bfloat16_gib", "int8_gib"), [("2b", 3.96, 2.28), ("4b", 8.27, 4.50), ("8b", 16.33, 9.33)]
)  # fmt: skip
def test_bytes_of_a_frozen_model(preset, bfloat16_gib, int8_gib):
  """Tables of embeddings are not quantized: of the 8B model two of 151,936 × 4,096."""
  for in_int8, gib in ((False, bfloat16_gib), (True, int8_gib)):
    subset = Subset((".*/lora_[ab]",), 2, 4.0, (), "bfloat16", in_int8)
    stored = jax.tree.leaves(int8.storage_shapes(abstract_params(PRESETS[preset]), subset))
    assert sum(x.size * x.dtype.itemsize for x in stored) / 2**30 == pytest.approx(gib, abs=0.006)


def test_trained_parameters_stay_unquantized_and_quantized_ones_frozen():
  subset = Subset(("vision/.*", ".*scale"), 0, 1.0, (), "bfloat16", True)
  shapes = int8.storage_shapes(abstract_params(PRESETS["tiny"]), subset)
  stored, (trained, _) = flatten(shapes), partition(shapes, subset.trainable)
  assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(trained))
  assert not any("kernel_" in path for path in flatten(trained))
  assert stored["vision/merger/fc1/kernel"].dtype == "float32"
  assert stored["text/layers/attention/q_norm/scale"].dtype == "float32"
  assert stored["text/layers/mlp/up_proj/kernel_int8"].dtype == "int8"
  assert stored["text/embed/embedding"].dtype == "bfloat16"
