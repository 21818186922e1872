"""The programs that a training command would run, from its config: traced with shapes in place of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config, settings_from
from spatial_vlm.data import batch_plan
from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.parameters.lora import partition_shapes
from spatial_vlm.parameters.partition import subset_from_config
from spatial_vlm.planning.compiled import Program, bytes_of_a_chip
from spatial_vlm.planning.flops import traced_flops
from spatial_vlm.planning.inputs import batch_shapes, prompt_shapes
from spatial_vlm.processor.chat import Size
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import stages
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.train import policy_optimization, sft, update
from spatial_vlm.train.policy_optimization import check as check_dapo
from spatial_vlm.train.sft import check as check_sft
from spatial_vlm.types import Params, Prompts, RlState, TrainState


def programs(config: Config, model: ModelConfig, mesh: Mesh) -> list[Program]:
  """Of a config of `sft`: its step. Of one of `dapo`: sampling (prefill and the whole of decoding) and the update.

  Raises UsageError and ValueError as these commands do.
  """
  trained, frozen = parts(config, model, mesh)
  state = train_state(config, mesh, trained)
  if "group_size" in config:
    check_dapo(config)
    return dapo_programs(config, model, mesh, state, frozen)
  check_sft(config)
  return [sft_program(config, model, mesh, state, frozen)]


def parts(config: Config, model: ModelConfig, mesh: Mesh) -> tuple[Params, Params]:
  """Shapes of what trains and of what is frozen, over the mesh."""
  subset = subset_from_config(config, config.lora)
  both = partition_shapes(training_shapes(mesh, model, subset), subset)
  trained, frozen = (with_param_shardings(mesh, part) for part in both)
  return trained, frozen


def train_state(config: Config, mesh: Mesh, trained: Params) -> TrainState:
  """Shapes of a fresh train state, over the mesh."""
  optimizer = optimizer_of(config)
  shapes = jax.eval_shape(lambda p: update.init_state(p, optimizer), trained)
  return sharding.with_shardings(shapes, sharding.state_shardings(mesh, shapes))


def sft_program(
  config: Config, model: ModelConfig, mesh: Mesh, state: TrainState, frozen: Params
) -> Program:
  size = batch_plan.largest([Size(*shape) for shape in config.data.shapes])
  batch = batch_shapes(mesh, model, config.batch_size, size)
  settings = settings_from(sft.SftSettings, config)
  trace = functools.partial(
    sft.sft_step.trace, state, batch, frozen, model=model, optimizer=optimizer_of(config)
  )
  return traced_program(
    "SFT step",
    mesh,
    lambda remat: trace(settings=dataclasses.replace(settings, remat=remat)),
    config.remat,
    held=held(state, frozen) | {"batch": batch},
    donated=bytes_of_a_chip(state),
  )


def dapo_programs(
  config: Config, model: ModelConfig, mesh: Mesh, train: TrainState, frozen: Params
) -> list[Program]:
  sampling_mesh = sharding.reshape_mesh(mesh, config.sampling_mesh)
  settings = settings_from(policy_optimization.RlSettings, config, eos=0, pad=0)
  optimizer = optimizer_of(config)
  prompts = prompt_shapes(
    sampling_mesh,
    model,
    config.rollout_batch_size,
    Size(config.data.prompt_tokens, config.data.patches),
  )
  words = model.text.vocab_size
  forbidden_tokens = jax.ShapeDtypeStruct(
    (words,), jnp.bool_, sharding=sharding.replicated(sampling_mesh)
  )
  automaton = jax.eval_shape(lambda: compile_automaton([b""] * words, eos_id=0))
  make = functools.partial(policy_optimization.rollout_weights, dtype=config.dtype)
  params = with_param_shardings(sampling_mesh, jax.eval_shape(make, train.params, frozen))
  key = jax.eval_shape(lambda: jax.random.key(0))
  sample = functools.partial(
    *(policy_optimization.sample_groups.trace, params, prompts, key, automaton, forbidden_tokens),
    model=model,
    settings=settings,
  )
  groups = jax.eval_shape(
    functools.partial(policy_optimization.sample_groups, model=model, settings=settings),
    *(params, prompts, key, automaton, forbidden_tokens),
  )
  state = jax.eval_shape(lambda t: policy_optimization.init_state(t, groups, settings), train)
  state: RlState = sharding.with_shardings(state, policy_optimization.state_shardings(mesh, state))
  rest = state.replace(train=None)
  update = functools.partial(
    policy_optimization.update.trace,
    state,
    forbidden_tokens,
    frozen,
    model=model,
    optimizer=optimizer,
  )
  sampling = traced_program(
    "sampling",
    sampling_mesh,
    lambda remat: sample(),
    config.remat,
    held={"parameters to sample": params, "groups_per_batch": prompts},
    beside={f"{name} (training)": tree for name, tree in held(train, frozen).items()}
    | {"groups": rest},
    cache_bytes=cache_bytes(config, model, sampling_mesh, params, prompts),
    turns=math.ceil(config.max_new_tokens / len(stages(config.max_new_tokens))),
  )
  updating = traced_program(
    "DAPO update",
    mesh,
    lambda remat: update(settings=dataclasses.replace(settings, remat=remat)),
    config.remat,
    held=held(train, frozen) | {"groups": rest},
    donated=bytes_of_a_chip(state),
  )
  return [sampling, updating]


def optimizer_of(config: Config) -> Any:
  steps = config.optimizer.warmup_steps + 1  # a constant of the program, whatever it is
  return make_optimizer(settings_from(OptimizerSettings, config.optimizer, total_steps=steps))


def traced_program(
  name: str,
  mesh: Mesh,
  trace: Callable[[str], jax.stages.Traced],
  remat: str,
  held: dict[str, Any],
  beside: dict[str, Any] | None = None,
  cache_bytes: int = 0,
  donated: int = 0,
  turns: int = 1,
) -> Program:
  """`trace(remat)` is the program under a policy of rematerialisation; under "none" nothing is computed again."""
  with jax.set_mesh(mesh):
    traced, useful = trace(remat), trace("none")
  return Program(
    name=name,
    traced=traced,
    mesh=mesh,
    held=held,
    beside=beside or {},
    cache_bytes=cache_bytes,
    donated=donated,
    useful_flops=traced_flops(useful.jaxpr.jaxpr, turns),
    traced_flops=traced_flops(traced.jaxpr.jaxpr, turns),
    turns=turns,
  )


def held(state: TrainState, frozen: Params) -> dict[str, Any]:
  """What training keeps on the chips."""
  kept = {"parameters": state.params, "optimizer": state.opt_state, "frozen": frozen}
  return {name: tree for name, tree in kept.items() if jax.tree.leaves(tree)}


def cache_bytes(
  config: Config, model: ModelConfig, mesh: Mesh, params: Params, prompts: Prompts
) -> int:
  """Keys and values that a chip holds at the end of sampling, if rows and heads are cut as far as the mesh goes."""
  _, cache = jax.eval_shape(lambda p, q: qwen3_vl.prefill(p, model, q), params, prompts)
  rows = config.rollout_batch_size * config.group_size
  cache = jax.eval_shape(lambda c: qwen3_vl.with_room(c, config.max_new_tokens, rows), cache)
  heads = sharding.divisible_axes(("tensor",), mesh, model.text.num_key_value_heads)
  axes = (*sharding.divisible_axes(sharding.ROWS, mesh, config.rollout_batch_size), *heads)
  total = sum(
    leaf.size * leaf.dtype.itemsize for block in cache.blocks for leaf in (block.keys, block.values)
  )
  return total // sharding.axis_product(mesh, axes)
