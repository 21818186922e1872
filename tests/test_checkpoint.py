"""Checkpoints: bit-exact, complete or absent, with errors that name the fault."""

import asyncio
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from spatial_vlm import checkpoint, sharding
from spatial_vlm.checkpoint import CheckpointError, Checkpoints
from spatial_vlm.types import TrainState


def make_state(seed=0, width=8):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "text": {
      "layers": {"mlp": {"up_proj": {"kernel": jax.random.normal(keys[0], (3, 16, width))}}},
      "embed": {"embedding": jax.random.normal(keys[1], (40, 16)).astype(jnp.bfloat16)},
    },
    "vision": {"blocks": {"norm1": {"scale": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-42])}}},
  }
  optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 10))
  opt_state = jax.tree.map(lambda x: x + seed if x.ndim else x, optimizer.init(params))
  return TrainState(step=jnp.int32(seed), params=params, opt_state=opt_state)


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def bits(tree):
  return [
    (
      jax.tree_util.keystr(path),
      np.asarray(leaf).dtype.name,
      np.asarray(leaf).shape,
      np.asarray(leaf).tobytes(),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  ]


def test_folders_that_are_written_at_once_are_whole(tmp_path):
  """Stages of the demo train side by side. Where their saves may start together, nearly every one fails."""

  def written(number):
    with Checkpoints(tmp_path / str(number)) as checkpoints:
      for step in range(1, 6):
        checkpoints.save(step, {"w": jnp.full((50, 50), number)}, {"step": step})
      return checkpoints.latest()

  with ThreadPoolExecutor(3) as pool:
    assert list(pool.map(written, range(3))) == [5, 5, 5]
  for number in range(3):
    with Checkpoints(tmp_path / str(number), read_only=True) as checkpoints:
      state, _ = checkpoints.restore({"w": jnp.zeros((50, 50), int)})
    assert (state["w"] == number).all()


def test_restored_bit_for_bit_with_every_kind_of_leaf(tmp_path):
  state = {
    "train": make_state(),
    "flags": jnp.array([True, False]),
    "ids": np.arange(5, dtype=np.int64),
    "nothing": None,
    "empty": {},
  }
  host = {
    "iterator": {"parent": {"next_index": 12}},
    "text": "Größe ≥ 3",
    "float": 0.1,
    "none": None,
  }
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(7, state, host)
  expected = {**abstract({k: v for k, v in state.items() if k != "ids"}), "ids": state["ids"]}
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 7
    restored, restored_host = checkpoints.restore(expected)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  assert bits(restored) == bits(state)
  assert restored_host == host
  assert isinstance(restored["ids"], np.ndarray) and isinstance(restored["train"], TrainState)
  assert restored["nothing"] is None


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
  """The files are written in the background, from buffers that the next step overwrites."""
  step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    state = jnp.arange(2_000_000, dtype=jnp.float32)
    for number in range(1, 4):
      expected = np.array(state)
      checkpoints.save(number, {"x": state}, {})
      for _ in range(5):
        state = step(state)
      restored, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct(expected.shape, expected.dtype)})
      np.testing.assert_array_equal(restored["x"], expected)


def test_only_the_newest_are_kept_and_close_waits_for_the_last(tmp_path):
  with Checkpoints(tmp_path / "new" / "folder", keep=2) as checkpoints:
    for step in (1, 2, 30):
      checkpoints.save(step, {"x": jnp.full(3, step)}, {"step": step})
  assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["2", "30"]
  with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
    restored, host = checkpoints.restore({"x": jax.ShapeDtypeStruct((3,), jnp.int32)})
  assert restored["x"].tolist() == [30] * 3 and host == {"step": 30}


def test_restored_on_another_mesh(tmp_path):
  state = make_state(width=32)
  eight = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 2})
  four = sharding.make_mesh({"data": 2, "fsdp": 1, "tensor": 2}, jax.devices()[:4])
  placed = jax.device_put(state, sharding.state_shardings(eight, state))
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, placed, {})
    target = jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
      state,
      sharding.state_shardings(four, state),
    )
    restored, _ = checkpoints.restore(target)
  assert bits(restored) == bits(state)
  kernel = restored.params["text"]["layers"]["mlp"]["up_proj"]["kernel"]
  assert kernel.sharding.mesh == four and kernel.sharding.spec == P(None, None, "tensor")
  with Checkpoints(tmp_path) as checkpoints:
    restored, _ = checkpoints.restore(abstract(state))
  assert {len(leaf.devices()) for leaf in jax.tree.leaves(restored)} == {1}


def test_step_that_is_not_newer_is_an_error(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(5, {"x": jnp.ones(2)}, {})
    for step in (5, 4):
      with pytest.raises(ValueError, match=f"checkpoint {step} is not newer than checkpoint 5"):
        checkpoints.save(step, {"x": jnp.ones(2)}, {})


def test_what_cannot_be_written_is_an_error_at_once(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(TypeError, match="JSON"):
      checkpoints.save(1, {"x": jnp.ones(2)}, {"cursor": np.int32(3)})
    with pytest.raises(ValueError, match="arrays of size 0 cannot be saved: buffer/tokens"):
      checkpoints.save(1, {"buffer": {"tokens": jnp.zeros((0, 4))}}, {})
    assert checkpoints.latest() is None
  with pytest.raises(ValueError, match="keep is 0"):
    Checkpoints(tmp_path, keep=0)


def test_no_checkpoint_is_an_error(tmp_path):
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(FileNotFoundError, match="no complete checkpoint"),
  ):
    checkpoints.restore({"x": jax.ShapeDtypeStruct((2,), jnp.float32)})


def test_state_of_another_model_lists_every_difference(tmp_path):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(
      1, {"same": jnp.ones(2), "shape": jnp.ones(3), "dtype": jnp.ones(2), "gone": jnp.ones(1)}, {}
    )
    struct = jax.ShapeDtypeStruct
    with pytest.raises(CheckpointError, match="another model or optimizer") as caught:
      checkpoints.restore(
        {
          "same": struct((2,), jnp.float32),
          "shape": struct((4,), jnp.float32),
          "dtype": struct((2,), jnp.bfloat16),
          "new": struct((1,), jnp.float32),
        }
      )
  message = str(caught.value)
  assert "shape: written float32[3], expected float32[4]" in message
  assert "dtype: written float32[2], expected bfloat16[2]" in message
  assert "gone: written float32[1], expected nothing" in message
  assert "new: written nothing, expected float32[1]" in message
  assert "same" not in message and "--workdir" in message


def test_part_of_a_state(tmp_path):
  state = {"train": {"params": jnp.arange(3.0), "moments": jnp.ones(3)}, "cursor": jnp.int32(4)}
  part = {"train": {"params": jax.ShapeDtypeStruct((3,), jnp.float32)}}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {"a": 1})
    restored, host = checkpoints.restore(part, partial=True)
    assert bits(restored) == bits({"train": {"params": state["train"]["params"]}}) and host == {
      "a": 1
    }
    with pytest.raises(
      CheckpointError, match="train/params: written float32.3., expected float32.4."
    ):
      checkpoints.restore(
        {"train": {"params": jax.ShapeDtypeStruct((4,), jnp.float32)}}, partial=True
      )
    with pytest.raises(CheckpointError, match="cursor: written int32.., expected nothing"):
      checkpoints.restore(part)


@pytest.mark.parametrize("damage", ["metadata", "truncated", "gone", "host"])
def test_damaged_checkpoint_names_the_remedy(tmp_path, damage):
  state = {"x": jax.random.normal(jax.random.key(0), (1000, 100))}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {"a": 1})
    checkpoints.save(2, state, {"a": 2})
  largest = max(
    (path for path in (tmp_path / "2").rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  if damage == "metadata":
    (tmp_path / "2" / "state" / "_METADATA").write_text("{")
  elif damage == "truncated":
    os.truncate(largest, 1000)
  elif damage == "gone":
    shutil.rmtree(tmp_path / "2" / "state")
  elif damage == "host":
    for path in (tmp_path / "2" / "host").iterdir():
      path.write_text("{")
  with (
    Checkpoints(tmp_path) as checkpoints,
    pytest.raises(CheckpointError, match="Remove the folder .*/2"),
  ):
    checkpoints.restore(abstract(state))
  shutil.rmtree(tmp_path / "2")
  with Checkpoints(tmp_path) as checkpoints:
    restored, host = checkpoints.restore(abstract(state))
  assert host == {"a": 1} and bits(restored) == bits(state)


@pytest.mark.parametrize("place", range(8))
def test_a_changed_bit_is_noticed(tmp_path, place):
  """In every file that holds values: some of these flips gave other weights in silence."""
  state = {"x": jnp.arange(4096.0), "flags": jnp.array([True, False] * 512), "n": jnp.int32(7)}
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, state, {"cursor": {"next_index": 12}})
  held = [path for path in sorted((tmp_path / "1").rglob("*")) if path.is_file()]
  file = max(held, key=lambda path: path.stat().st_size)
  if place == 0:
    for file in (tmp_path / "1" / "host").iterdir():
      file.write_text(file.read_text().replace(" 12", " 13").replace(":12", ":13"))
  else:
    data = bytearray(file.read_bytes())
    data[len(data) * place // 8] ^= 1 << place % 8
    file.write_bytes(data)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match=r"(is damaged|cannot be read).* Remove the folder"):
      checkpoints.restore(abstract(state))
    if place == 0:
      with pytest.raises(CheckpointError, match=r"is damaged: \(host\) changed"):
        checkpoints.restore({"n": abstract(state)["n"]}, partial=True)


def test_quiet(tmp_path, capfd):
  previous = logging.getLogger("absl").level
  logging.getLogger("absl").setLevel(logging.INFO)
  try:
    (tmp_path / "9.orbax-checkpoint-tmp").mkdir()
    for step in (1, 2, 3):
      with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(step, make_state(), {})
  finally:
    logging.getLogger("absl").setLevel(previous)
  assert not (tmp_path / "9.orbax-checkpoint-tmp").exists()
  captured = capfd.readouterr()
  assert captured.out == "" and captured.err == ""
  assert logging.getLogger("absl").filters == []


WRITER = """
  import sys
  import jax, jax.numpy as jnp
  from spatial_vlm.checkpoint import Checkpoints

  shapes = {name: jax.ShapeDtypeStruct((64, 999), jnp.float32) for name in "abcdefgh"}
  with Checkpoints(sys.argv[1], keep=2) as checkpoints:
    step = 0
    if checkpoints.latest() is not None:
      state, host = checkpoints.restore(shapes)
      step = checkpoints.latest()
      assert host == {"step": step} and all((leaf == step).all() for leaf in state.values()), (host, state)
    while True:
      step += 1
      checkpoints.save(step, {name: jnp.full(s.shape, step, s.dtype) for name, s in shapes.items()}, {"step": step})
      print(step, flush=True)
"""


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_any_moment_the_last_complete_one_is_restored(tmp_path, kills):
  """The writer saves without pause, so that nearly every SIGKILL interrupts a save or a deletion."""
  rng = random.Random(kills)
  unfinished, last = 0, 0
  for _ in range(kills):
    writer = subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    first = writer.stdout.readline()
    if not first:
      raise AssertionError(writer.communicate()[1])
    # When save n has returned, n − 1 is complete and n is being written; n + 1 may have returned unnoticed.
    assert last == 0 or int(first) - 1 in (last - 1, last, last + 1)
    for _ in range(rng.randint(1, 4)):
      last = int(writer.stdout.readline())
    time.sleep(rng.uniform(0, 0.1))
    writer.send_signal(signal.SIGKILL)
    rest, errors = writer.communicate()
    last = int((rest.split() or [last])[-1])
    assert errors == ""
    unfinished += any(not path.name.isdigit() for path in tmp_path.iterdir())
  assert unfinished > 0
  shape = jax.ShapeDtypeStruct((64, 999), jnp.float32)
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    latest = checkpoints.latest()
    state, host = checkpoints.restore(dict.fromkeys("abcdefgh", shape))
    checkpoints.save(latest + 1, state, host)
  assert host == {"step": latest} and latest in (last - 1, last, last + 1)
  assert all((leaf == latest).all() for leaf in state.values())
  assert {path.name for path in tmp_path.iterdir()} == {str(latest), str(latest + 1)}


def test_late_errors_of_a_failed_write_are_not_shown(monkeypatch, caplog):
  """After a full disk, they were hundreds of lines around the one sentence."""
  shown = []
  monkeypatch.setattr(sys, "unraisablehook", shown.append)
  checkpoint._drop_late_errors.__wrapped__()
  closed = asyncio.new_event_loop()
  closed.close()
  for call in (lambda: closed.call_soon_threadsafe(print), lambda: closed.run_until_complete(None)):
    with pytest.raises(RuntimeError, match="Event loop is closed") as error:
      call()
    where = error.tb.tb_next.tb_next  # as it is called from outside of Python
    sys.unraisablehook(SimpleNamespace(exc_type=RuntimeError, exc_traceback=where))
  assert len(shown) == 1
  logging.getLogger("asyncio").error(
    "Task exception was never retrieved: .../orbax/checkpoint/a.py"
  )
  logging.getLogger("asyncio").error("Task exception was never retrieved: teacher.py")
  assert caplog.messages == ["Task exception was never retrieved: teacher.py"]
