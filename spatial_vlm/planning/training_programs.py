"""What training keeps on the chips, and the programs of `sft`."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from spatial_vlm import process_rows, sharding
from spatial_vlm.config import Config, settings_from
from spatial_vlm.data import batch_plan
from spatial_vlm.huggingface.checkpoint_folder import layer_selector
from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.optim.optimizers import optimizer_from_config
from spatial_vlm.parameters.lora import partition_shapes
from spatial_vlm.parameters.partition import NOTHING, subset_from_config
from spatial_vlm.planning.compiled import (
  DeviceMemory,
  Program,
  ProgramKind,
  bytes_per_chip,
  trace_program,
)
from spatial_vlm.planning.inputs import batch_shapes
from spatial_vlm.processor.chat import Size
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.train import sft
from spatial_vlm.train.update import init_state
from spatial_vlm.types import Params, TrainState


class TrainingShapes(NamedTuple):
  """Shapes of what training keeps on the chips."""

  state: TrainState
  frozen: Params
  reference: Params = NOTHING
  """Trainable parameters of the reference policy, if an objective of `dapo` reads them."""

  def by_name(self) -> dict[str, Any]:
    """Returns the trees that are not empty, by the names that a plan shows."""
    trees = {
      "parameters": self.state.params,
      "optimizer": self.state.opt_state,
      "frozen": self.frozen,
      "reference": self.reference,
    }
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def sft_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the step of `sft` on its largest batch, and the writing of its weights."""
  sft.check(config)
  mesh = sharding.make_mesh(config.mesh, devices)
  process_rows.check_rows(mesh, "batch_size", config.batch_size)
  training = sharded_training_shapes(config, model, mesh)
  size = batch_plan.largest([Size(*shape) for shape in config.data.shapes])
  batch = batch_shapes(mesh, model, config.batch_size, size, config.dtype)
  settings = settings_from(sft.SftSettings, config)
  trace = functools.partial(
    sft.sft_step.trace,
    training.state,
    batch,
    training.frozen,
    model=model,
    optimizer=optimizer_from(config),
  )
  step = Program(
    "SFT step",
    ProgramKind.TRAINING,
    trace_program(
      mesh,
      lambda remat: trace(settings=dataclasses.replace(settings, remat=remat)),
      config.remat,
    ),
    DeviceMemory(
      inputs=training.by_name() | {"batch": batch},
      donated_bytes=bytes_per_chip(training.state),
    ),
  )
  return [step, export_program(mesh, training)]


def export_program(mesh: Mesh, training: TrainingShapes) -> Program:
  """Traces the gathering of the largest array that is written: the table of embeddings, whole on every chip."""
  both = {**training.frozen.get("text", {}), **training.state.params.get("text", {})}
  table = both["embed"]["embedding"]
  select = layer_selector(np.dtype(np.float32), sharding.replicated(mesh))
  return Program(
    "writing weights",
    ProgramKind.OTHER,
    trace_program(mesh, lambda remat: select.trace(table, None), "none"),
    DeviceMemory(inputs={}, resident=training.by_name()),
  )


def sharded_training_shapes(config: Config, model: ModelConfig, mesh: Mesh) -> TrainingShapes:
  """Returns the shapes of a fresh train state and of the frozen parameters, sharded over the mesh."""
  subset = subset_from_config(config)
  both = partition_shapes(training_shapes(mesh, model, subset), subset)
  trained, frozen = (with_param_shardings(mesh, part) for part in both)
  optimizer = optimizer_from(config)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), trained)
  state = sharding.with_shardings(state, sharding.state_shardings(mesh, state))
  return TrainingShapes(state, frozen)


def optimizer_from(config: Config) -> optax.GradientTransformation:
  """Builds the optimizer of a config, for an arbitrary number of steps: it is only a constant of the program."""
  steps = config.optimizer.warmup_steps + 1
  return optimizer_from_config(config.optimizer, steps)
