"""Programs that answer prompts: sampling, greedy generation, and the logits of the first token."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from spatial_vlm import sharding
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.planning.compiled import (
  DeviceMemory,
  Program,
  ProgramKind,
  bytes_per_chip,
  trace_program,
)
from spatial_vlm.planning.inputs import abstract_array
from spatial_vlm.rollout.prefix_cache import FILLED_AT_ONCE, PrefixTable, computation_dtype, fill
from spatial_vlm.rollout.sampler import SamplingSettings, first_token_logits, generate, stages
from spatial_vlm.rollout.slot_engine import slot_sizes
from spatial_vlm.rollout.slot_requests import SlotSettings
from spatial_vlm.rollout.slots import (
  Arrivals,
  RowSettings,
  decode_slots,
  empty_slots,
  fill_slots,
)
from spatial_vlm.types import Params, Prompts


class Generation(NamedTuple):
  """What an engine answers: weights and prompts over its mesh."""

  mesh: Mesh
  model: ModelConfig
  weights: Params
  """Shapes with shardings."""
  prompts: Prompts
  sampling: SamplingSettings
  resident: Mapping[str, Any] = {}
  """Arrays that stay on the chips besides."""
  prefixes: Prefixes | None = None
  """Cached texts that the prompts continue."""

  @property
  def inputs(self) -> dict[str, Any]:
    """What a program reads, by name."""
    arrays = {"rollout weights": self.weights, "prompts": self.prompts}
    return arrays if self.prefixes is None else arrays | {"cached prefixes": self.prefixes}


def greedy(max_new_tokens: int) -> SamplingSettings:
  """Returns settings of one greedy answer to each prompt; the ids of special tokens do not change the cost."""
  return SamplingSettings(1, max_new_tokens, temperature=0.0, eos=0, pad=0)


def answers_program(name: str, generation: Generation) -> Program:
  """Traces prefill and all of decoding."""
  mesh, model, weights, prompts, sampling, resident, prefixes = generation
  key = jax.eval_shape(lambda: jax.random.key(0))
  forbidden = jax.ShapeDtypeStruct(
    (model.text.vocab_size,), jnp.bool_, sharding=sharding.replicated(mesh)
  )

  def trace(remat: str) -> jax.stages.Traced:  # no backward pass, so no rematerialisation
    return generate.trace(
      weights, prompts, key, forbidden, prefixes, model=model, sampling=sampling
    )

  tokens = sampling.max_new_tokens
  return Program(
    name,
    ProgramKind.SAMPLING,
    trace_program(mesh, trace, "none", trip_count=math.ceil(tokens / len(stages(tokens)))),
    DeviceMemory(
      inputs=generation.inputs,
      resident=resident,
      kv_cache_bytes=kv_cache_bytes(generation),
    ),
  )


def slot_programs(generation: Generation, settings: SlotSettings) -> list[Program]:
  """Traces what an engine with slots runs: reading as many prompts as at once, and decoding in full slots.

  `generation.prompts` are those that are read at once.
  """
  mesh, model, weights, prompts, _, resident, prefixes = generation
  prefix_tokens = prefixes.valid.shape[1] if prefixes else 0
  dtype = computation_dtype(weights)
  sizes = slot_sizes(settings, prefix_tokens)
  slots = empty_slots(model, mesh, dtype, sizes)
  inputs = generation.inputs | {"slots": slots}
  donated = bytes_per_chip(slots)

  def rows(*shape: int, dtype: DTypeLike = jnp.int32) -> Any:
    return sharding.with_row_shardings(mesh, abstract_array(shape, dtype))

  F = prompts.label.shape[0]
  samples = -(-generation.sampling.group_size // settings.samples_per_slot)
  arrivals = Arrivals(
    prompts=prompts,
    places=rows(F, samples),
    samples=rows(F),
    settings=RowSettings(
      keys=rows(F, 2, dtype=jnp.uint32),
      temperature=rows(F, dtype=jnp.float32),
      top_p=rows(F, dtype=jnp.float32),
      top_k=rows(F),
      limit=rows(F),
      ends=rows(F, sizes.end_tokens),
      wants_likeliest=rows(F, dtype=jnp.bool_),
    ),
  )
  keep = rows(sizes.rows, dtype=jnp.bool_)
  forbidden = abstract_array((model.text.vocab_size,), jnp.bool_, sharding.replicated(mesh))
  tokens = settings.decode_tokens

  def read(remat: str) -> jax.stages.Traced:
    return fill_slots.trace(weights, slots, arrivals, prefixes, model=model)

  def decode(remat: str) -> jax.stages.Traced:
    return decode_slots.trace(
      *(weights, slots, keep, forbidden),
      model=model,
      tokens=tokens,
      top_logprobs=settings.top_logprobs,
    )

  del inputs["prompts"]
  return [
    Program(
      name,
      ProgramKind.SAMPLING,
      trace_program(mesh, trace, "none", trip_count=trips),
      DeviceMemory(inputs=arrays, resident=resident, donated_bytes=donated),
    )
    for name, trace, trips, arrays in (
      ("reading prompts into slots", read, 1, inputs | {"prompts": prompts}),
      (f"{tokens} tokens of every slot", decode, tokens, inputs),
    )
  ]


def first_token_program(name: str, generation: Generation) -> Program:
  """Traces the prefill that zero-shot scoring reads its logits from."""

  def trace(remat: str) -> jax.stages.Traced:
    weights, prompts = generation.weights, generation.prompts
    return first_token_logits.trace(weights, prompts, generation.prefixes, model=generation.model)

  return Program(
    name,
    ProgramKind.SAMPLING,
    trace_program(generation.mesh, trace, "none"),
    DeviceMemory(
      inputs=generation.inputs,
      resident=generation.resident,
    ),
  )


def prefix_program(name: str, generation: Generation, table: PrefixTable) -> Program:
  """Traces the keys and values of texts that prompts share."""
  n, length = min(FILLED_AT_ONCE, len(table.valid)), table.valid.shape[1]
  where = sharding.replicated(generation.mesh)
  tokens, valid = (abstract_array((n, length), t, where) for t in (jnp.int32, jnp.bool_))
  slots = abstract_array((n,), jnp.int32, where)

  def trace(remat: str) -> jax.stages.Traced:
    return fill.trace(generation.weights, table, tokens, valid, slots, model=generation.model)

  return Program(
    name,
    ProgramKind.SAMPLING,
    trace_program(generation.mesh, trace, "none"),
    DeviceMemory(
      inputs={"rollout weights": generation.weights, "cached prefixes": table},
      resident=generation.resident,
    ),
  )


def kv_cache_bytes(generation: Generation) -> int:
  """Returns the bytes per chip of keys and values at the end of generation.

  Assumes that rows and heads are sharded as far as the mesh allows.
  """
  mesh, model, weights, prompts, sampling, _, prefixes = generation
  _, cache = jax.eval_shape(
    lambda *of_prompts: qwen3_vl.prefill(of_prompts[0], model, *of_prompts[1:]),
    *(weights, prompts, prefixes),
  )
  prompt_rows = prompts.label.shape[0]
  rows = prompt_rows * sampling.group_size
  cache = jax.eval_shape(
    lambda c: qwen3_vl.add_cache_block(c, sampling.max_new_tokens, rows), cache
  )
  heads = sharding.divisible_axes(("tensor",), mesh, model.text.num_key_value_heads)
  axes = (*sharding.divisible_axes(sharding.ROWS, mesh, prompt_rows), *heads)
  total = sum(
    leaf.size * leaf.dtype.itemsize
    for block in cache.blocks
    for leaf in (*block.keys, *block.values)
  )
  return total // sharding.axis_product(mesh, axes)
