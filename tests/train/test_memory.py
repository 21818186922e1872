"""What an update of low-rank pairs takes of one chip: the step is compiled ahead of time for it, no chip is needed."""

import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from spatial_vlm import config, sharding
from spatial_vlm.commands.setup import master_shapes, over_mesh, settings_of
from spatial_vlm.commands.subsets import parts_of, subset_of
from spatial_vlm.model.config import PRESETS
from spatial_vlm.optim import OptimizerSettings, make_optimizer
from spatial_vlm.train.sft import SftSettings, init_state, sft_step
from spatial_vlm.types import Batch, Vision

GIB = 2**30
LORA = (
  *("trainable=('.*/lora_[ab]',)", "lora.rank=16", "batch_size=1", "micro_batches=1"),
  *("checkpoint=x", "data.conversations=x", "data.images=x", "data.evaluation=x"),
)


def chip(topology):
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  pytest.importorskip("libtpu")
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=topology, chips_per_host_bounds=(1, 1, 1)
  ).devices
  return sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, devices)


def one_row(mesh, model, tokens, patches):
  """A batch's shapes: `patches` patches of pictures in `tokens` tokens."""

  def of(count, *shape, dtype=np.int32):
    return jax.ShapeDtypeStruct((1, count, *shape), dtype, sharding=sharding.replicated(mesh))

  return Batch(
    tokens=of(tokens),
    segments=of(tokens),
    targets=of(tokens, dtype=bool),
    positions=of(tokens, 3),
    vision=Vision(
      patches=of(patches, model.vision.patch_dim, dtype=np.float32),
      segments=of(patches),
      coords=of(patches, 2),
      pos_index=of(patches, 4),
      pos_weight=of(patches, 4, dtype=np.float32),
    ),
  )


def compiled_step(preset, topology, *overrides):
  """Memory of one update as `sft` makes it with the settings of `8b`, on rows of its shape."""
  settings = config.load("configs/sft.py:8b", [*LORA, *overrides])
  mesh, model = chip(topology), PRESETS[preset]
  subset = subset_of(settings, settings.lora)
  trained, frozen = parts_of(master_shapes(mesh, model, subset), subset)
  optimizer = make_optimizer(settings_of(OptimizerSettings, settings.optimizer, total_steps=100))
  state = jax.eval_shape(lambda params: init_state(params, optimizer), trained)
  state = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    state,
    sharding.state_shardings(mesh, state),
  )
  ((tokens, patches),) = settings.data.shapes
  with jax.set_mesh(mesh):
    lowered = sft_step.lower(
      *(state, one_row(mesh, model, tokens, patches), over_mesh(mesh, frozen)),
      model=model,
      optimizer=optimizer,
      settings=settings_of(SftSettings, settings),
    )
    return lowered.compile().memory_analysis()


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
  ("preset", "topology", "in_int8", "most_gib"),
  [
    ("2b", "v5e:1x1", False, 7.0),
    ("4b", "v5e:1x1", False, 12.5),
    ("8b", "v5e:1x1", True, 14.2),
    ("8b", "v6e:1x1", False, 22.5),
  ],
)
def test_pairs_train_on_one_chip(preset, topology, in_int8, most_gib):
  """No copy of the frozen stacks is made, in the type of the computation least of all."""
  memory = compiled_step(preset, topology, f"frozen_int8={in_int8}")
  assert memory.peak_memory_in_bytes < most_gib * GIB
  assert memory.temp_size_in_bytes < 5.5 * GIB


@pytest.mark.tpu
@pytest.mark.slow
def test_8b_in_bfloat16_does_not_fit_a_v5e():
  with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
    compiled_step("8b", "v5e:1x1")
