"""The programs that a training command would run, traced from its config with shapes in place of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError, settings_from
from spatial_vlm.data import batch_plan
from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.policy_objectives import reads_reference
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
from spatial_vlm.planning.inputs import batch_shapes, prompt_shapes
from spatial_vlm.processor.chat import Size
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import generate, stages
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.tasks import find_task
from spatial_vlm.train import policy_optimization, rl_settings, sft
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.rollout_buffer import init_state as init_rl_state
from spatial_vlm.train.rollout_buffer import rollout_shapes, state_shardings
from spatial_vlm.train.update import init_state
from spatial_vlm.types import Params, Prompts, RlState, TrainState


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


class SamplingShapes(NamedTuple):
  """Shapes of the arguments of `generate`, in its order."""

  rollout_weights: Params
  prompts: Prompts
  key: Any
  forbidden_tokens: Any


class RlShapes(NamedTuple):
  """Shapes of what a run of `dapo` keeps on the chips."""

  training: TrainingShapes
  sampling: SamplingShapes
  state: RlState


def trace_programs(config: Config, model: ModelConfig, mesh: Mesh) -> list[Program]:
  """Traces the programs of a training config, after the checks of its command.

  `sft` has one program, its step. `dapo` has two: sampling (prefill and all of decoding), and the update.

  Raises:
    UsageError, ValueError: the command would refuse the config.
  """
  return PROGRAMS[algorithm_of(config)](config, model, mesh)


def algorithm_of(config: Config) -> str:
  """Returns the training algorithm of a config; raises UsageError if it has none."""
  algorithm = config.get("algorithm")
  if not isinstance(algorithm, str) or algorithm not in PROGRAMS:
    raise UsageError(
      f"the config's algorithm is {algorithm!r}; programs can be planned for {' and '.join(PROGRAMS)}: "
      "give a preset of configs/sft.py or configs/dapo.py"
    )
  return algorithm


def sft_programs(config: Config, model: ModelConfig, mesh: Mesh) -> list[Program]:
  """Traces the step of `sft` on its largest batch."""
  sft.check(config)
  training = sharded_training_shapes(config, model, mesh)
  size = batch_plan.largest([Size(*shape) for shape in config.data.shapes])
  batch = batch_shapes(mesh, model, config.batch_size, size)
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
  return [step]


def dapo_programs(config: Config, model: ModelConfig, mesh: Mesh) -> list[Program]:
  """Traces a sampling round and a policy update of `dapo`."""
  rl_settings.check(config)
  shapes = rl_shapes(config, model, mesh)
  return [
    sampling_program(config, model, mesh, shapes),
    update_program(config, model, mesh, shapes),
  ]


PROGRAMS: Mapping[str, Callable[[Config, ModelConfig, Mesh], list[Program]]] = {
  "sft": sft_programs,
  "dapo": dapo_programs,
}
"""Algorithm (the leaf of a config) → function that traces its programs."""


def sampling_program(config: Config, model: ModelConfig, mesh: Mesh, shapes: RlShapes) -> Program:
  """Traces a sampling round over the sampling mesh; what training keeps stays on the chips meanwhile."""
  mesh = sharding.reshape_mesh(mesh, config.sampling_mesh)
  trace = functools.partial(
    generate.trace, *shapes.sampling, model=model, sampling=rl_settings_from(config).sampling
  )
  training = {f"{name} (training)": tree for name, tree in shapes.training.by_name().items()}
  return Program(
    "sampling",
    ProgramKind.SAMPLING,
    trace_program(
      mesh,
      lambda remat: trace(),  # no backward pass, so no rematerialisation
      config.remat,
      trip_count=math.ceil(config.max_new_tokens / len(stages(config.max_new_tokens))),
    ),
    DeviceMemory(
      inputs={
        "rollout weights": shapes.sampling.rollout_weights,
        "prompts": shapes.sampling.prompts,
      },
      resident=training | {"buffered groups": shapes.state.replace(train=None)},
      kv_cache_bytes=kv_cache_bytes(config, model, mesh, shapes.sampling),
    ),
  )


def update_program(config: Config, model: ModelConfig, mesh: Mesh, shapes: RlShapes) -> Program:
  """Traces the policy update on a full buffer of groups."""
  settings = rl_settings_from(config)
  trace = functools.partial(
    policy_optimization.update_policy.trace,
    shapes.state,
    policy_optimization.Constants(
      shapes.sampling.forbidden_tokens, shapes.training.frozen, shapes.training.reference
    ),
    model=model,
    optimizer=optimizer_from(config),
  )
  return Program(
    "DAPO update",
    ProgramKind.TRAINING,
    trace_program(
      mesh,
      lambda remat: trace(settings=dataclasses.replace(settings, remat=remat)),
      config.remat,
    ),
    DeviceMemory(
      inputs=shapes.training.by_name() | {"buffered groups": shapes.state.replace(train=None)},
      donated_bytes=bytes_per_chip(shapes.state),
    ),
  )


def rl_shapes(config: Config, model: ModelConfig, mesh: Mesh) -> RlShapes:
  """Returns the shapes of a run of `dapo`, sharded as its programs expect them."""
  settings = rl_settings_from(config)
  training = sharded_training_shapes(config, model, mesh)
  if reads_reference(config.objectives):
    training = training._replace(reference=training.state.params)
  sampling = sampling_shapes(config, model, mesh, training)
  grammar = find_task(config.task).grammar
  automaton = jax.eval_shape(
    lambda: compile_automaton(grammar, [b""] * model.text.vocab_size, eos_id=settings.eos)
  )
  groups = rollout_shapes(sampling.prompts, automaton, settings)
  state = jax.eval_shape(lambda train: init_rl_state(train, groups, settings), training.state)
  state = sharding.with_shardings(state, state_shardings(mesh, state))
  return RlShapes(training, sampling, state)


def rl_settings_from(config: Config) -> RlSettings:
  """Returns the settings of `dapo`'s programs; the ids of special tokens do not change their cost."""
  return settings_from(RlSettings, config, eos=0, pad=0)


def sharded_training_shapes(config: Config, model: ModelConfig, mesh: Mesh) -> TrainingShapes:
  """Returns the shapes of a fresh train state and of the frozen parameters, sharded over the mesh."""
  subset = subset_from_config(config)
  both = partition_shapes(training_shapes(mesh, model, subset), subset)
  trained, frozen = (with_param_shardings(mesh, part) for part in both)
  optimizer = optimizer_from(config)
  state = jax.eval_shape(lambda p: init_state(p, optimizer), trained)
  state = sharding.with_shardings(state, sharding.state_shardings(mesh, state))
  return TrainingShapes(state, frozen)


def sampling_shapes(
  config: Config, model: ModelConfig, mesh: Mesh, training: TrainingShapes
) -> SamplingShapes:
  """Returns the shapes of the arguments of a sampling round, sharded over the sampling mesh."""
  mesh = sharding.reshape_mesh(mesh, config.sampling_mesh)
  size = Size(config.data.prompt_tokens, config.data.patches)
  weights = jax.eval_shape(
    functools.partial(policy_optimization.rollout_weights, dtype=config.dtype),
    training.state.params,
    training.frozen,
  )
  return SamplingShapes(
    rollout_weights=with_param_shardings(mesh, weights),
    prompts=prompt_shapes(mesh, model, config.rollout_batch_size, size),
    key=jax.eval_shape(lambda: jax.random.key(0)),
    forbidden_tokens=jax.ShapeDtypeStruct(
      (model.text.vocab_size,), jnp.bool_, sharding=sharding.replicated(mesh)
    ),
  )


def optimizer_from(config: Config) -> optax.GradientTransformation:
  """Builds the optimizer of a config, for an arbitrary number of steps: it is only a constant of the program."""
  steps = config.optimizer.warmup_steps + 1
  return optimizer_from_config(config.optimizer, steps)


def kv_cache_bytes(config: Config, model: ModelConfig, mesh: Mesh, sampling: SamplingShapes) -> int:
  """Returns the bytes per chip of keys and values at the end of sampling.

  Assumes that rows and heads are sharded as far as the mesh allows.
  """
  _, cache = jax.eval_shape(
    lambda p, q: qwen3_vl.prefill(p, model, q), sampling.rollout_weights, sampling.prompts
  )
  rows = config.rollout_batch_size * config.group_size
  cache = jax.eval_shape(lambda c: qwen3_vl.add_cache_block(c, config.max_new_tokens, rows), cache)
  heads = sharding.divisible_axes(("tensor",), mesh, model.text.num_key_value_heads)
  axes = (*sharding.divisible_axes(sharding.ROWS, mesh, config.rollout_batch_size), *heads)
  total = sum(
    leaf.size * leaf.dtype.itemsize for block in cache.blocks for leaf in (block.keys, block.values)
  )
  return total // sharding.axis_product(mesh, axes)
