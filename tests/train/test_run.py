"""What training runs share: recorded settings, the rows of each process, the fresh state."""

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from etils import epath
from ml_collections import ConfigDict
from optimizer_settings import adamw_settings

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.inference.loading import load_policy, load_policy_for_training
from spatial_vlm.optim.optimizers import make_optimizer
from spatial_vlm.train import run
from spatial_vlm.train.prolonging import RunLength
from spatial_vlm.train.run import place_state, record_settings


def test_trained_weights_are_float32_and_on_the_mesh(nano):
  policy = load_policy(str(nano))
  half = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), policy.params)
  optimizer = make_optimizer(adamw_settings(learning_rate=1.0, beta2=0.9, weight_decay=0.0))
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
  cut = load_policy_for_training(str(nano), mesh)
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
    record_settings(config, workdir, RunLength("steps"))
  assert not workdir.exists()
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_index", lambda: 0)
    record_settings(config, workdir, RunLength("steps"))
  (workdir / "results.json").touch()
  before = (workdir / "config.json").read_text()
  record_settings(Config(ConfigDict({"seed": 1, "max_to_keep": 3})), workdir, RunLength("steps"))
  with pytest.raises(UsageError, match="seed: 1 → 2"):
    record_settings(Config(ConfigDict({"seed": 2, "max_to_keep": 2})), workdir, RunLength("steps"))
  assert (workdir / "config.json").read_text() == before


def test_checkpoints_are_due_by_steps_and_by_minutes(monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
  is_due = run.checkpoint_cadence(4, 0.5)
  found = []
  for event in range(1, 11):
    now[0] += 12
    found.append(is_due(event))
  # Event 4 by steps; event 7 by time, 36 s after it; event 8 by steps; event 11 would be next.
  assert [event for event, due in enumerate(found, 1) if due] == [3, 4, 7, 8]
  by_steps = run.checkpoint_cadence(2, 0.0)
  assert [by_steps(event) for event in range(4)] == [True, False, True, False]
  by_time = run.checkpoint_cadence(0, 1.0)
  assert not by_time(0)
  now[0] += 61
  assert by_time(1) and not by_time(2)


def test_the_clock_of_process_0_decides(monkeypatch):
  monkeypatch.setattr(run.hosts, "all_gather_json", lambda seconds: [3600.0, seconds])
  assert run.checkpoint_cadence(0, 30.0)(1)
