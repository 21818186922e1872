"""The programs of the commands that ask a policy: `evaluate`, `behaviors`, `answer`, `serve`, `synthesize` by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.huggingface.weights import abstract_params
from spatial_vlm.inference.generation import (
  PREFIX_BUCKET,
  check_batch,
  prefixes_at_once,
  serving_slots,
  slot_settings,
)
from spatial_vlm.inference.policy import prompt_format
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.planning.compiled import Program
from spatial_vlm.planning.generation_programs import (
  Generation,
  answers_program,
  first_token_program,
  greedy,
  prefix_program,
  slot_programs,
)
from spatial_vlm.planning.inputs import abstract_array, prompt_shapes
from spatial_vlm.processor.chat import Size
from spatial_vlm.processor.image import padded_length
from spatial_vlm.rollout.prefix_cache import PrefixTable, table_shapes
from spatial_vlm.rollout.sampler import SamplingSettings
from spatial_vlm.sharding import with_param_shardings

DTYPE = "bfloat16"
"""Type of the weights in published checkpoints; they are computed in it."""
SYSTEM_TURN_TOKENS = 16
"""Tokens before the image besides the line of a behavior."""
ANSWER_TEXT_TOKENS = 192
"""Tokens of a question besides its image; a statement and a behavior take fewer."""


def evaluate_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the answers to batches (in slots) and to one question, and the scoring of `zero-shot`.

  With `reuse`, the prompts follow recalled behaviors, whose keys and values are computed too.
  """
  mesh, count = sharding.make_mesh(config.mesh, devices), config.prompt_slots
  check_batch(config, mesh, in_slots=count > 0)
  format = prompt_format(config.prompt_shapes, DTYPE)
  sampling = greedy(config.max_new_tokens)
  slots = slot_settings(format, mesh, count, config.max_new_tokens, eos=0) if count else None
  parts = sharding.axis_product(mesh, sharding.ROWS)
  batch, read, single = (
    policy_generation(model, config.mesh, devices, rows, format.limit, sampling)
    for rows in (config.batch_size, parts * slots.prefill_prompts[-1] if slots else 1, 1)
  )
  filling = []
  if config.method == "reuse":
    length = padded_length([config.behavior_tokens + SYSTEM_TURN_TOKENS], PREFIX_BUCKET)
    texts = prefixes_at_once(config.batch_size, mesh, slots)
    shapes = table_shapes(model, batch.mesh, texts, length, jnp.dtype(DTYPE))
    batch, read, single = (after_prefixes(asked, shapes) for asked in (batch, read, single))
    filling = [prefix_program("keys and values of behaviors", batch, shapes)]
  programs = [
    *(slot_programs(read, slots) if slots else [answers_program("answers", batch)]),
    answers_program("a single answer", single),
    *filling,
  ]
  if config.method == "zero-shot":
    programs.append(first_token_program("logits of the first token", batch))
  return programs


def behaviors_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the answers to a batch; raises UsageError for chains of a file, which no model answers."""
  if config.chains:
    raise UsageError(
      f"chains is {config.chains!r}: no model answers then; plan the presets tiny and 8b"
    )
  check_batch(config, sharding.make_mesh(config.mesh, devices))
  size = prompt_format(config.prompt_shapes, DTYPE).limit
  sampling = greedy(config.max_new_tokens)
  batch = policy_generation(model, config.mesh, devices, config.batch_size, size, sampling)
  return [answers_program("answers", batch)]


def answer_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the answer to a question about the largest photograph."""
  patches = config.max_patches
  size = Size(patches // model.vision.spatial_merge_size**2 + ANSWER_TEXT_TOKENS, patches)
  sampling = greedy(config.max_new_tokens)
  single = policy_generation(model, config.mesh, devices, 1, size, sampling)
  return [answers_program("answer", single)]


def serve_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces what the server's slots run: reading as many prompts as at once, and decoding; without behaviors."""
  mesh = sharding.make_mesh(config.mesh, devices)
  format = prompt_format(config.prompt_shapes, DTYPE)
  slots = serving_slots(config, format, eos=0)
  rows = sharding.axis_product(mesh, sharding.ROWS) * slots.prefill_prompts[-1]
  sampling = greedy(config.max_new_tokens)
  read = policy_generation(model, config.mesh, devices, rows, format.limit, sampling)
  return slot_programs(read, slots)


def synthesize_programs(
  config: Config, model: ModelConfig, devices: Sequence[Any]
) -> list[Program]:
  """Traces the answers of a policy that is its own teacher; raises UsageError for another teacher."""
  if config.teacher != "policy":
    raise UsageError(
      f"teacher is {config.teacher!r}, which runs elsewhere; a policy is planned: configs/synthesize.py:self"
    )
  policy = config.policy
  sampling = SamplingSettings(1, config.max_output_tokens, config.temperature, eos=0, pad=0)
  size = Size(*policy.prompt_shape)
  batch = policy_generation(model, policy.mesh, devices, policy.batch_size, size, sampling)
  return [answers_program("sampled answers", batch)]


def after_prefixes(generation: Generation, table: PrefixTable) -> Generation:
  """Returns the same with prompts that continue texts of the table."""
  row = abstract_array((len(generation.prompts.label),), jnp.int32)
  row = sharding.with_row_shardings(generation.mesh, row)
  prefixes = Prefixes(table.keys, table.values, table.valid, row)
  return generation._replace(prefixes=prefixes)


def policy_generation(
  model: ModelConfig,
  mesh_shape: Mapping[str, int],
  devices: Sequence[Any],
  rows: int,
  size: Size,
  sampling: SamplingSettings,
) -> Generation:
  """Returns what the engine of a loaded policy answers."""
  mesh = sharding.make_mesh(mesh_shape, devices)
  weights = with_param_shardings(mesh, abstract_params(model, jnp.dtype(DTYPE)))
  return Generation(mesh, model, weights, prompt_shapes(mesh, model, rows, size, DTYPE), sampling)
