"""The programs of `dapo`: publishing weights, sampling, validation, scoring, the update."""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spatial_vlm import sharding
from spatial_vlm.config import Config, settings_from
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.policy_objectives import reads_reference
from spatial_vlm.planning.compiled import (
  DeviceMemory,
  Program,
  ProgramKind,
  bytes_per_chip,
  trace_program,
)
from spatial_vlm.planning.generation_programs import (
  Generation,
  answers_program,
  greedy,
  slot_programs,
)
from spatial_vlm.planning.inputs import abstract_array, prompt_shapes
from spatial_vlm.planning.training_programs import (
  TrainingShapes,
  export_program,
  optimizer_from,
  sharded_training_shapes,
)
from spatial_vlm.processor.chat import Size
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import Completions
from spatial_vlm.tasks import find_task
from spatial_vlm.train import policy_optimization, rl_settings, rollout_buffer
from spatial_vlm.train.engines import rollout_slots
from spatial_vlm.train.policy_optimization import Constants, Minibatch, MinibatchScores
from spatial_vlm.train.rl_data import rl_format
from spatial_vlm.train.rl_engine import TrainingMeshes, check_batches
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.types import Params, RlState, Rollout


class RlRun(NamedTuple):
  """Shapes of what a run of `dapo` keeps on the chips, and what its programs are compiled with."""

  model: ModelConfig
  settings: RlSettings
  meshes: TrainingMeshes
  training: TrainingShapes
  state: RlState
  rollout_weights: Params
  prompt_size: Size

  @property
  def constants(self) -> Constants:
    """The arrays that updates read and never change."""
    vocabulary = (self.model.text.vocab_size,)
    where = sharding.replicated(self.meshes.training)
    forbidden = abstract_array(vocabulary, jnp.bool_, where)
    return Constants(forbidden, self.training.frozen, self.training.reference)

  @property
  def kept(self) -> dict[str, Any]:
    """Everything that stays on the chips for the whole run, by name."""
    return self.training.by_name() | {"buffered groups": self.state.replace(train=None)}


def dapo_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the programs of a run in the order in which they run first, each at its largest size."""
  rl_settings.check(config)
  run = rl_run(config, model, devices)
  return [
    publish_program(run),
    *sampling_programs(config, run),
    judging_program(config, run),
    collect_program(run),
    *([scoring_program(run)] if policy_optimization.scorings(run.settings) else []),
    update_program(config, run),
    export_program(run.meshes.training, run.training),
  ]


def sampling_programs(config: Config, run: RlRun) -> list[Program]:
  """Traces validation and sampling, which are the same programs in slots."""
  if config.engine.kind == "slots":
    slots = rollout_slots(config, run.meshes.sampling, eos=0)
    parts = sharding.axis_product(run.meshes.sampling, sharding.ROWS)
    return slot_programs(generation(config, run, parts * slots.prefill_prompts[-1]), slots)
  return [
    answers_program("validation", generation(config, run, config.validate_batch, is_greedy=True)),
    answers_program("sampling", generation(config, run, config.rollout_batch_size)),
  ]


def rl_run(config: Config, model: ModelConfig, devices: Sequence[Any]) -> RlRun:
  """Returns the shapes of a run, sharded as its programs expect them, after the checks of the command."""
  mesh = sharding.make_mesh(config.mesh, devices)
  meshes = TrainingMeshes(mesh, sharding.reshape_mesh(mesh, config.sampling_mesh))
  check_batches(config, meshes)
  # The ids of special tokens do not change the cost.
  settings = settings_from(RlSettings, config, eos=0, pad=0)
  training = sharded_training_shapes(config, model, mesh)
  if reads_reference(config.objectives):
    training = training._replace(reference=training.state.params)
  state = jax.eval_shape(lambda train: rollout_buffer.init_state(train, settings), training.state)
  weights = policy_optimization.rollout_weight_shapes(
    meshes.sampling, training.state.params, training.frozen, config.dtype
  )
  return RlRun(
    model,
    settings,
    meshes,
    training,
    sharding.with_shardings(state, rollout_buffer.state_shardings(mesh, state)),
    weights,
    rl_format(config).limit,
  )


def generation(config: Config, run: RlRun, rows: int, is_greedy: bool = False) -> Generation:
  """Returns what the engine answers; what training keeps stays on the chips meanwhile."""
  mesh = run.meshes.sampling
  return Generation(
    mesh,
    run.model,
    run.rollout_weights,
    prompt_shapes(mesh, run.model, rows, run.prompt_size, config.dtype),
    greedy(config.max_new_tokens) if is_greedy else run.settings.sampling,
    {f"{name} (training)": tree for name, tree in run.kept.items()},
  )


def publish_program(run: RlRun) -> Program:
  """Traces the copy of the weights to the sampling mesh."""
  params, frozen = run.training.state.params, run.training.frozen
  place = policy_optimization.rollout_weight_placer(
    run.meshes.sampling, params, frozen, run.settings.dtype
  )
  return Program(
    "publishing weights",
    ProgramKind.OTHER,
    trace_program(run.meshes.training, lambda remat: place.trace(params, frozen), "none"),
    DeviceMemory(
      inputs={"parameters": params, "frozen": frozen} if frozen else {"parameters": params},
      resident={
        name: tree for name, tree in run.kept.items() if name not in ("parameters", "frozen")
      },
    ),
  )


def judging_program(config: Config, run: RlRun) -> Program:
  """Traces the verdicts of a round, on the sampling mesh."""
  mesh, settings, model = run.meshes.sampling, run.settings, run.model
  rows = settings.rollout_batch_size
  prompts = prompt_shapes(mesh, model, rows, run.prompt_size, config.dtype)
  shape = (rows * settings.group_size, settings.max_new_tokens)
  completions = Completions(
    *(abstract_array(shape, dtype) for dtype in (jnp.int32, jnp.bool_, jnp.float32))
  )
  completions = sharding.with_row_shardings(mesh, completions)
  grammar = find_task(config.task).grammar
  automaton = jax.eval_shape(
    lambda: compile_automaton(grammar, [b""] * model.text.vocab_size, eos_id=settings.eos)
  )
  trace = functools.partial(
    rollout_buffer.judge_groups.trace,
    prompts,
    completions,
    automaton,
    group_size=settings.group_size,
  )
  return Program(
    "judging",
    ProgramKind.OTHER,
    trace_program(mesh, lambda remat: trace(), "none"),
    DeviceMemory(inputs={"completions": completions}, resident=run.kept),
  )


def collect_program(run: RlRun) -> Program:
  """Traces the filling of the buffer."""
  settings = run.settings
  groups = sharded_groups(run, settings.rollout_batch_size)
  trace = functools.partial(rollout_buffer.collect.trace, run.state, groups, settings=settings)
  return Program(
    "collecting groups",
    ProgramKind.OTHER,
    trace_program(run.meshes.training, lambda remat: trace(), "none"),
    DeviceMemory(
      inputs={"state": run.state, "groups": groups},
      resident={"frozen": run.training.frozen} if run.training.frozen else {},
      donated_bytes=bytes_per_chip(run.state),
    ),
  )


def scoring_program(run: RlRun) -> Program:
  """Traces the log-probabilities of a mini-batch before its update."""
  minibatch = largest_minibatch(run)
  trace = functools.partial(
    policy_optimization.score_minibatch.trace,
    run.training.state.params,
    minibatch,
    run.constants,
    model=run.model,
    settings=run.settings,
  )
  return Program(
    "old log-probabilities",
    ProgramKind.TRAINING,
    trace_program(run.meshes.training, lambda remat: trace(), "none"),
    DeviceMemory(
      inputs={"parameters": run.training.state.params, "mini-batch": minibatch},
      resident=resident_of_update(run, ("parameters",)),
    ),
  )


def update_program(config: Config, run: RlRun) -> Program:
  """Traces the update on a mini-batch."""
  minibatch = largest_minibatch(run)
  logp = minibatch.rollout.logp
  reference = logp if run.training.reference else None
  scores = MinibatchScores(logp, reference, abstract_array((), jnp.bool_))
  trace = functools.partial(
    policy_optimization.step_on_minibatch.trace,
    run.training.state,
    minibatch,
    scores,
    run.constants,
    model=run.model,
    optimizer=optimizer_from(config),
  )
  return Program(
    "DAPO update",
    ProgramKind.TRAINING,
    trace_program(
      run.meshes.training,
      lambda remat: trace(settings=dataclasses.replace(run.settings, remat=remat)),
      config.remat,
    ),
    DeviceMemory(
      inputs=run.training.by_name() | {"mini-batch": minibatch},
      resident=resident_of_update(run, run.training.by_name()),
      donated_bytes=bytes_per_chip(run.training.state),
    ),
  )


def resident_of_update(run: RlRun, inputs: Collection[str]) -> dict[str, Any]:
  """Returns what lies on the chips besides a program's inputs: the other mini-batches and the buffer too."""
  others = [largest_minibatch(run)] * (run.settings.minibatches - 1)
  policy_batch = sharded_groups(run, run.settings.groups_per_batch)
  resident = {name: tree for name, tree in run.kept.items() if name not in inputs}
  return resident | {"other mini-batches": others, "policy batch": policy_batch}


def largest_minibatch(run: RlRun) -> Minibatch:
  """Returns the shapes of a mini-batch with the largest prompts and the longest answers."""
  settings, mesh = run.settings, run.meshes.training
  groups = settings.groups_per_batch // settings.minibatches
  prompts = prompt_shapes(mesh, run.model, groups, run.prompt_size, settings.dtype)
  return Minibatch(prompts, sharded_groups(run, groups))


def sharded_groups(run: RlRun, groups: int) -> Rollout:
  """Returns the shapes of so many groups over the training mesh."""
  shapes = rollout_buffer.rollout_shapes(groups, run.settings)
  return sharding.with_row_shardings(run.meshes.training, shapes)
