"""The mesh, and the shardings of parameters, optimizer states and batches."""

import dataclasses
import functools
import itertools
import re

import jax
import numpy as np
import optax
import pytest
from encoder_reference import CONFIG as ENCODER
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from optimizer_settings import adamw_settings

from spatial_vlm import process_rows, sharding
from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.model.xlm_roberta import init_encoder
from spatial_vlm.optim.optimizers import make_optimizer
from spatial_vlm.parameters import paths
from spatial_vlm.parameters.paths import PARAMETERS, ParameterRow, path_name
from spatial_vlm.train.sft import SftSettings, sft_loss
from spatial_vlm.train.update import accumulate, cut_rows, mean_gradient
from spatial_vlm.types import Batch, TrainState, Vision

SHAPES = ({"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "tensor": 2})


def shapes_of(preset):
  return jax.eval_shape(lambda key: init_params(PRESETS[preset], key), jax.random.key(0))


def leaves(tree):
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_mesh_takes_the_rest_and_is_auto():
  mesh = sharding.make_mesh({"tensor": 2, "data": 1, "fsdp": -1})
  assert dict(mesh.shape) == {"slice": 1, "data": 1, "fsdp": 4, "tensor": 2}
  assert mesh.axis_names == ("slice", "data", "fsdp", "tensor")
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  "shape, message",
  [
    ({"data": 1, "fsdp": 3, "tensor": 1}, "multiply to 8"),
    ({"data": 3, "fsdp": -1, "tensor": 1}, "multiply to 8"),
    ({"data": 16, "fsdp": -1, "tensor": 1}, "multiply to 8"),
    ({"data": -1, "fsdp": -1, "tensor": 1}, "at most one axis"),
    ({"data": 0, "fsdp": 8, "tensor": 1}, "positive sizes"),
    ({"data": -2, "fsdp": 8, "tensor": 1}, "positive sizes"),
    ({"fsdp": 4}, "multiply to 8"),
    ({"data": 1, "fsdp": 8, "model": 1}, "names model; its axes are slice, data, fsdp, tensor"),
  ],
)
def test_mesh_that_does_not_fit_says_so(shape, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(shape)


class SlicedDevice:
  """The attributes of a TPU device of a multi-slice pod that the mesh reads."""

  platform, device_kind, core_on_chip = "tpu", "TPU v5e", 0

  def __init__(self, number, slices):
    self.id, self.slice_index = number, number % slices  # not in the order of slices
    self.coords = (number // slices, 0, 0)

  def __repr__(self):
    return f"{self.id}"


def test_the_outer_axis_spans_the_slices():
  mesh = sharding.make_mesh({"slice": 2, "fsdp": -1}, [SlicedDevice(i, 2) for i in range(8)])
  assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 4, "tensor": 1}
  of_slice = [{device.slice_index for device in part.flat} for part in mesh.devices]
  assert of_slice == [{0}, {1}]
  with pytest.raises(ValueError, match="mesh.slice is 1, but the 8 devices form 2 slices"):
    sharding.make_mesh({"fsdp": -1}, [SlicedDevice(i, 2) for i in range(8)])


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_matches_one_row_and_every_row_a_parameter(preset):
  encoder = jax.eval_shape(lambda key: init_encoder(ENCODER, key), jax.random.key(0))
  paths = [*leaves(shapes_of(preset)), *leaves(encoder)]
  rows = [[row.pattern for row in PARAMETERS if re.fullmatch(row.pattern, path)] for path in paths]
  assert [path for path, row in zip(paths, rows, strict=True) if len(row) != 1] == []
  assert {pattern for row in rows for pattern in row} == {row.pattern for row in PARAMETERS}


def test_unknown_parameter_is_named():
  mesh = sharding.make_mesh(SHAPES[0])
  with pytest.raises(ValueError, match="text/layers/attention/qkv_proj/kernel.*matches 0 rows"):
    sharding.param_shardings(
      mesh, {"text": {"layers": {"attention": {"qkv_proj": {"kernel": np.zeros((2, 4, 4, 4))}}}}}
    )


def test_parameter_in_two_rows_is_named(monkeypatch):
  second = ParameterRow(".*/scale", P("fsdp"), None, False)
  monkeypatch.setattr(paths, "PARAMETERS", (*PARAMETERS, second))
  with pytest.raises(ValueError, match="text/final_norm/scale.*matches 2 rows"):
    sharding.param_shardings(
      sharding.make_mesh(SHAPES[0]), {"text": {"final_norm": {"scale": np.zeros(8)}}}
    )


def test_specs_of_the_8b_model():
  mesh = sharding.make_mesh(SHAPES[0])
  specs = {
    name: leaf.spec
    for name, leaf in leaves(sharding.param_shardings(mesh, shapes_of("8b"))).items()
  }
  assert specs["text/embed/embedding"] == P("tensor", "fsdp")
  assert specs["text/layers/attention/q_proj/kernel"] == P(None, "fsdp", "tensor")
  assert specs["text/layers/attention/o_proj/kernel"] == P(None, "tensor", None, "fsdp")
  assert specs["text/layers/mlp/down_proj/kernel"] == P(None, "tensor", "fsdp")
  assert specs["vision/merger/fc1/kernel"] == P("fsdp", "tensor")
  assert specs["vision/deepstack_mergers/fc1/kernel"] == P(None, "fsdp", "tensor")
  assert specs["text/layers/input_norm/scale"] == P()


def test_almost_all_of_the_8b_model_is_cut_eight_ways():
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
  shapes = shapes_of("8b")
  placed = sharding.param_shardings(mesh, shapes)
  stored_bytes = sum(
    np.prod(where.shard_shape(shape.shape))
    for where, shape in zip(jax.tree.leaves(placed), jax.tree.leaves(shapes), strict=True)
  )
  total = sum(shape.size for shape in jax.tree.leaves(shapes))
  assert stored_bytes / (total / 8) < 1.01


def test_axis_that_does_not_divide_cuts_another_dimension():
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 4})
  specs = {
    name: leaf.spec
    for name, leaf in leaves(sharding.param_shardings(mesh, shapes_of("tiny"))).items()
  }
  assert specs["text/layers/attention/q_proj/kernel"] == P(None, "fsdp", "tensor")
  # 2 key-value heads
  assert specs["text/layers/attention/k_proj/kernel"] == P(None, ("fsdp", "tensor"))


def test_axis_that_divides_nothing_is_dropped():
  mesh = sharding.make_mesh({"fsdp": 8})
  odd = {"text": {"layers": {"mlp": {"up_proj": {"kernel": np.zeros((8, 6, 12))}}}}}
  [where] = jax.tree.leaves(sharding.param_shardings(mesh, odd))
  assert where.shard_shape((8, 6, 12)) == (8, 6, 12)


LARGE = 2**20
"""Values of a parameter that must not lie whole on every device."""


@pytest.mark.parametrize("preset", ["2b", "4b", "8b"])
@pytest.mark.parametrize("fsdp", [2, 4, 8, 16, 32, 64, 128])
def test_no_large_parameter_stays_whole_under_fsdp(preset, fsdp):
  """An abstract mesh has no devices: pods of any size fit."""
  mesh = jax.sharding.AbstractMesh((1, 1, fsdp, 1), sharding.AXES)
  shapes = leaves(shapes_of(preset))
  placed = leaves(sharding.param_shardings(mesh, shapes_of(preset)))
  whole = [
    path
    for path, leaf in shapes.items()
    if leaf.size >= LARGE and np.prod(placed[path].shard_shape(leaf.shape)) * fsdp > leaf.size
  ]
  assert whole == []
  assert sum(leaf.size >= LARGE for leaf in shapes.values()) >= 20


@pytest.mark.parametrize("tensor", [4, 8, 16])
def test_tensor_axis_cuts_what_is_large_in_the_towers_of_the_8b_model(tensor):
  """Of 16 vision heads, 8 key-value heads, 4,304 hidden units and 151,936 words."""
  mesh = jax.sharding.AbstractMesh((1, 1, 4, tensor), sharding.AXES)
  shapes = leaves(shapes_of("8b"))
  placed = leaves(sharding.param_shardings(mesh, shapes_of("8b")))
  parts = {
    path: leaf.size / np.prod(placed[path].shard_shape(leaf.shape))
    for path, leaf in shapes.items()
    if leaf.size >= LARGE
  }
  less = {path for path, count in parts.items() if count < 4 * tensor}
  assert less == {"vision/patch_embed/positions/embedding", "vision/patch_embed/proj/kernel"}


def test_rows_are_sharded_over_as_many_devices_as_divide_them():
  mesh = sharding.make_mesh({"slice": 2, "data": 2, "fsdp": 2})
  batch = {
    "all": np.zeros((16, 3)),
    "some": np.zeros((6, 3)),
    "none": np.zeros(3),
    "scalar": np.float32(1),
  }
  specs = {name: leaf.spec for name, leaf in sharding.batch_sharding(mesh, batch).items()}
  assert specs == {
    "all": P(sharding.ROWS),
    "some": P("slice"),
    "none": P(),
    "scalar": P(),
  }


def test_optimizer_state_is_sharded_as_its_parameters():
  mesh = sharding.make_mesh(SHAPES[1])
  params = shapes_of("tiny")
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(
      optax.cosine_decay_schedule(1e-3, 10), mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    ),
  )
  state = jax.eval_shape(
    lambda params: TrainState(
      step=jax.numpy.int32(0), params=params, opt_state=optimizer.init(params)
    ),
    params,
  )
  placed = sharding.state_shardings(mesh, state)
  assert jax.tree.structure(placed) == jax.tree.structure(state)
  adam = [
    leaf
    for leaf in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
    if hasattr(leaf, "mu")
  ]
  assert len(adam) == 1
  assert adam[0].mu == placed.params
  assert adam[0].nu == placed.params
  assert adam[0].count.spec == P() and placed.step.spec == P()
  assert any("tensor" in leaf.spec for leaf in jax.tree.leaves(placed.params))
  with pytest.raises(ValueError, match="opt_state/odd"):
    sharding.state_shardings(mesh, state.replace(opt_state={"odd": np.zeros((3, 5))}))


def optimizer_specs(method, moments):
  """Path in the optimizer's state -> (spec, shape) for the 8b model; every array in whole slices of its devices."""
  optimizer = make_optimizer(
    adamw_settings(method=method, moments=moments, learning_rate=1e-5, warmup_steps=1)
  )
  state = jax.eval_shape(
    lambda params: TrainState(jax.numpy.int32(0), params, optimizer.init(params)), shapes_of("8b")
  )
  placed = sharding.state_shardings(sharding.make_mesh(SHAPES[1]), state)
  found = {
    name: (where.spec, leaves(state.opt_state)[name].shape)
    for name, where in leaves(placed.opt_state).items()
  }
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state))
  stored_bytes = sum(
    np.prod(where.shard_shape(x.shape)) * x.dtype.itemsize
    for where, x in zip(
      jax.tree.leaves(placed.opt_state), jax.tree.leaves(state.opt_state), strict=True
    )
  )
  return found, whole, stored_bytes


def of(found, *parts):
  """The value of the one path that ends in these parts."""
  (value,) = (value for name, value in found.items() if name.endswith("/" + "/".join(parts)))
  return value


UP, O, SQUARE = (
  "text/layers/mlp/up_proj/kernel",
  "text/layers/attention/o_proj/kernel",
  "vision/merger/fc1/kernel",
)
NORM = "text/layers/input_norm/scale"


@pytest.mark.parametrize(("method", "moments"), [("adamw", "bfloat16"), ("muon", "float32")])
def test_moments_are_sharded_as_their_parameters(method, moments):
  found, whole, stored_bytes = optimizer_specs(method, moments)
  assert of(found, "mu", UP) == (P(None, "fsdp", "tensor"), (36, 4096, 12288))
  assert of(found, "mu", O) == (P(None, "tensor", None, "fsdp"), (36, 32, 128, 4096))
  assert of(found, "mu", NORM) == (P(), (36, 4096))
  assert stored_bytes / (whole / 8) < 1.01


@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_codes_are_sharded_as_parameters_and_scales_without_the_last_axis(method):
  found, whole, stored_bytes = optimizer_specs(method, "float8")
  assert of(found, "mu", UP, "codes") == (P(None, "fsdp", "tensor"), (36, 4096, 12288))
  assert of(found, "mu", UP, "scale") == (P(None, "fsdp"), (36, 4096))
  assert of(found, "mu", O, "scale") == (P(None, "tensor"), (36, 32, 128))
  assert of(found, "mu", NORM, "scale") == (P(), (36,))
  assert of(found, "nu", "text/embed/embedding", "codes")[0] == P("tensor", "fsdp")
  assert of(found, "nu", "text/embed/embedding", "scale") == (P("tensor"), (151936,))
  assert stored_bytes / (whole / 8) < 1.05


def test_adafactor_rows_and_columns_are_sharded_as_the_remaining_axes():
  found, whole, _ = optimizer_specs("adafactor", "float8")
  assert of(found, "v_row", UP) == (P(None, "fsdp"), (36, 4096))
  assert of(found, "v_col", UP) == (P(None, "tensor"), (36, 12288))
  assert of(found, "v_row", O) == (P(None, "tensor"), (36, 32, 128))
  assert of(found, "v_col", O) == (P(None, "tensor", "fsdp"), (36, 32, 4096))
  assert of(found, "v_row", SQUARE) == (P("fsdp"), (4608,))
  assert of(found, "v_col", SQUARE) == (P("tensor"), (4608,))
  assert of(found, "v_row", NORM) == (P(), (1,))
  assert of(found, "v", NORM, "codes") == (P(), (36, 4096))
  assert of(found, "v", UP, "codes") == (P(), (1,))
  assert whole < 0.02 * 4 * sum(x.size for x in jax.tree.leaves(shapes_of("8b")))


def make_batch(config, rows, tokens, rng):
  """Each row: an image of 8×8 patches, its 16 tokens, text, and padding at the end of every other row."""
  side, merge = 8, config.vision.spatial_merge_size
  visual = (side // merge) ** 2
  ids = rng.integers(0, 500, (rows, tokens))
  ids[:, 2 : 2 + visual] = config.image_token_id
  segments = np.ones((rows, tokens), np.int32)
  segments[::2, -5:] = 0
  positions = np.broadcast_to(np.arange(tokens)[None, :, None], (rows, tokens, 3)).astype(np.int32)
  grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1)
  blocks = grid.reshape(side // 2, 2, side // 2, 2, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)
  coords = np.broadcast_to(blocks, (rows, side * side, 2)).astype(np.int32)
  index = np.repeat((coords[..., 0] * side + coords[..., 1])[..., None], 4, -1).astype(np.int32)
  return Batch(
    tokens=ids.astype(np.int32),
    segments=segments,
    targets=segments > 0,
    positions=positions,
    vision=Vision(
      patches=rng.normal(size=(rows, side * side, config.vision.patch_dim)).astype(np.float32),
      segments=np.ones((rows, side * side), np.int32),
      coords=coords,
      pos_index=index,
      pos_weight=np.full((rows, side * side, 4), 0.25, np.float32),
    ),
  )


def mesh_shapes(devices):
  """All shapes of a mesh over so many devices."""
  sizes = [size for size in range(1, devices + 1) if devices % size == 0]
  shapes = itertools.product(sizes, repeat=len(sharding.AXES))
  return [shape for shape in shapes if np.prod(shape) == devices]


QUICK = (2, 1, 2, 2)
"""All kinds of axes; the others are slow."""


@functools.cache
def small_problem():
  """Model, parameters, batch, and the unsharded loss with its gradients."""
  tiny = PRESETS["tiny"]
  config = dataclasses.replace(
    tiny,
    vision=dataclasses.replace(tiny.vision, depth=2, deepstack_visual_indexes=(0,)),
    text=dataclasses.replace(tiny.text, num_hidden_layers=2),
  )
  settings = SftSettings(micro_batches=2, chunk_tokens=10, remat="full", dtype="float32")
  params = jax.tree.map(np.asarray, init_params(config, jax.random.key(0)))
  batch = make_batch(config, 16, 28, np.random.default_rng(0))

  def loss(params, rows):
    total, count = sft_loss(params, rows, config, settings)
    return total, {"loss": (total, count)}

  @jax.jit
  def gradient(params, batch):
    pieces = cut_rows(batch, settings.micro_batches)
    grads, sums = accumulate(jax.grad(loss, has_aux=True), params, pieces)
    return mean_gradient(grads, sums["loss"][1]), sums["loss"]

  return gradient, params, batch, jax.device_get(gradient(params, batch))


@pytest.mark.parametrize(
  "shape",
  [
    pytest.param(shape, marks=() if shape == QUICK else pytest.mark.slow)
    for shape in mesh_shapes(8)
  ],
)
def test_every_mesh_gives_the_unsharded_loss_and_gradients(shape):
  """Tolerance: 1e-5 of the loss, and of the largest gradient of each array."""
  gradient, params, batch, (grads, (total, count)) = small_problem()
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, shape, strict=True)))
  on_mesh = jax.device_put(params, sharding.param_shardings(mesh, params))
  rows = process_rows.make_global_batch(mesh, batch)
  assert len({str(part.index) for part in rows.tokens.addressable_shards}) == np.prod(shape[:3])
  with jax.set_mesh(mesh):
    grads_mesh, (total_mesh, count_mesh) = gradient(on_mesh, rows)
  assert count_mesh == count
  np.testing.assert_allclose(total_mesh, total, rtol=1e-5)
  for name, expected in leaves(grads).items():
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
      leaves(grads_mesh)[name], expected, rtol=0, atol=1e-5 * scale, err_msg=name
    )


@pytest.mark.parametrize(
  ("groups", "group_size", "copies"), [(8, 2, 1), (4, 6, 2), (2, 8, 4), (3, 8, 8), (1, 12, 4)]
)
def test_devices_share_copies_of_groups_as_they_share_rows(groups, group_size, copies):
  """On 8 devices; 12 rows can only be shared by 4 of them."""
  with jax.set_mesh(sharding.make_mesh({"data": 4, "fsdp": 2})):
    devices = sharding.row_devices(groups * group_size)
    assert devices == np.gcd(groups * group_size, 8)
    assert sharding.copies_for_rows(groups, group_size) == copies
  assert groups * copies % devices == group_size % copies == 0
  assert sharding.copies_for_rows(groups, group_size) == 1
