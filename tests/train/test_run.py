"""What training runs share: recorded settings, the rows of each process, the fresh state."""

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.train.run import check_algorithm, check_rows, place_state, record_settings


def test_trained_weights_are_float32_and_on_the_mesh(nano):
  policy = load_policy(str(nano))
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), policy.params)
  adam = dict(method="adamw", beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
  constant = dict(learning_rate=1.0, schedule="constant", warmup_steps=0, final_fraction=1.0)
  optimizer = make_optimizer(
    OptimizerSettings(**adam, **constant, moments="float32", total_steps=9)
  )
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  state = place_state(mesh, half, optimizer)
  expected = sharding.state_shardings(mesh, state)
  jax.tree.map(
    lambda x, where: where.is_equivalent_to(x.sharding, x.ndim) or pytest.fail("elsewhere"),
    state,
    expected,
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(np.float32)),
    jax.device_get(state.params),
    half,
  )


def test_weights_on_the_mesh_become_the_states_arrays(nano):
  """No second copy of the model is made."""
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  cut = load_policy(str(nano), mesh=mesh)
  state = place_state(mesh, cut.params, optax.sgd(1.0))
  for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(cut.params), strict=True):
    buffers = [
      {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
      for array in (ours, theirs)
    ]
    assert buffers[0] == buffers[1]


def test_process_0_records_the_settings_and_the_others_are_checked(tmp_path, monkeypatch):
  workdir, config = epath.Path(tmp_path / "run"), Config(ConfigDict({"seed": 1, "max_to_keep": 2}))
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with pytest.raises(UsageError, match="a folder that all hosts share"):
    record_settings(config, workdir)
  assert not workdir.exists()
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_index", lambda: 0)
    record_settings(config, workdir)
  before = (workdir / "config.json").read_text()
  record_settings(Config(ConfigDict({"seed": 1, "max_to_keep": 3})), workdir)
  with pytest.raises(UsageError, match="seed: 1 → 2"):
    record_settings(Config(ConfigDict({"seed": 2, "max_to_keep": 2})), workdir)
  assert (workdir / "config.json").read_text() == before


def test_a_config_of_another_command_is_refused():
  config = Config(ConfigDict({"algorithm": "dapo"}))
  check_algorithm(config, "dapo")
  with pytest.raises(
    UsageError, match="is for 'dapo': run `spatial-vlm dapo`, or give `spatial-vl"
  ):
    check_algorithm(config, "sft")
  with pytest.raises(UsageError, match=r"no leaf algorithm; give .* a preset of configs/sft\.py"):
    check_algorithm(Config(ConfigDict({})), "sft")


@pytest.mark.parametrize(
  ("mesh", "rows", "message"),
  [
    ((1, 2, 4, 1), 8, None),
    ((1, 2, 2, 2), 12, None),
    ((1, 1, 2, 4), 8, None),
    ((1, 8, 1, 1), 9, "batch_size is 9; it must be a multiple of the 2 processes that share it"),
    ((1, 1, 1, 8), 8, "must cut a batch into as many parts as there are processes, 2"),
    ((1, 8, 1, 1), 12, "batch_size is 12 and mesh.slice 1 × mesh.data 8 × mesh.fsdp 1"),
  ],
)
def test_each_process_reads_the_rows_of_its_devices(monkeypatch, mesh, rows, message):
  """Makes the first four of the eight devices those of this process."""
  mesh = sharding.make_mesh(dict(zip(sharding.AXES, mesh, strict=True)))
  check_rows(mesh, "batch_size", rows)  # alone
  own = {device: device.id < 4 for device in jax.devices()}
  whole = jax.sharding.NamedSharding.devices_indices_map
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    jax.sharding.NamedSharding,
    "addressable_devices_indices_map",
    lambda where, shape: {d: i for d, i in whole(where, shape).items() if own[d]},
  )
  if message is None:
    check_rows(mesh, "batch_size", rows)
  else:
    with pytest.raises(UsageError, match=message):
      check_rows(mesh, "batch_size", rows)
