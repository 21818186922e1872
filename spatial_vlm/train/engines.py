"""The engines that a training run can sample with, by the name in its config (`engine.kind`)."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh

from spatial_vlm.config import Config, UsageError, UsageErrorOfAll
from spatial_vlm.inference.generation import slot_settings
from spatial_vlm.parameters.lora import read_with_parts
from spatial_vlm.parameters.partition import combine, flatten
from spatial_vlm.rollout.engine import Engine
from spatial_vlm.rollout.slot_requests import SlotSettings
from spatial_vlm.rollout.vllm_client import VllmClient, check_url
from spatial_vlm.rollout.vllm_engine import ServedModel, VllmEngine
from spatial_vlm.train.rl_data import rl_format
from spatial_vlm.train.rl_engine import compiled_engine
from spatial_vlm.train.run import Trainable
from spatial_vlm.types import Params


def in_this_process(config: Config, trainable: Trainable, mesh: Mesh) -> Engine:
  """Returns an engine that samples over the mesh; the answers of a round start together."""
  return compiled_engine(trainable, mesh, config.dtype)


def in_slots(config: Config, trainable: Trainable, mesh: Mesh) -> Engine:
  """Returns an engine that samples over the mesh in slots, which the next prompts of a round take as they are free.

  `rl_engine.check_batches` checks that a group fits.
  """
  slots = rollout_slots(config, mesh, trainable.policy.special.eos)
  return compiled_engine(trainable, mesh, config.dtype, slots)


def rollout_slots(config: Config, mesh: Mesh, eos: int) -> SlotSettings:
  """Returns the slots in which the groups of a round are sampled."""
  settings = config.engine
  slots = slot_settings(rl_format(config), mesh, settings.prompt_slots, config.max_new_tokens, eos)
  of_group = -(-config.group_size // settings.samples_per_slot)
  read = tuple(max(1, count // of_group) for count in slots.prefill_prompts)
  return dataclasses.replace(
    slots, samples_per_slot=settings.samples_per_slot, prefill_prompts=read
  )


def over_http(config: Config, trainable: Trainable, mesh: Mesh) -> VllmEngine:
  """Returns an engine that asks the vLLM server of the config.

  Raises UsageError where the server does not answer.
  """
  settings = config.engine
  folder = epath.Path(settings.folder)
  folder.mkdir(parents=True, exist_ok=True)
  served = ServedModel(
    VllmClient(settings.url, settings.timeout_s),
    folder,
    settings.transfer,
    settings.checksums,
    np.dtype(settings.dtype),
    settings.in_flight,
  )
  policy = trainable.policy

  def leaf_at(trained: Params) -> Callable[[str], Any]:
    flat = flatten(combine(trained, trainable.frozen))
    return lambda path: read_with_parts(flat.__getitem__, trainable.subset, path)

  return VllmEngine(served, policy.model, policy.forbidden_tokens, mesh, leaf_at)


ENGINES: Mapping[str, Callable[[Config, Trainable, Mesh], Engine]] = MappingProxyType(
  {"compiled": in_this_process, "slots": in_slots, "vllm": over_http}
)
"""Name → (config, what a run trains, sampling mesh) → engine."""


def check_gap(settings: Config, gap: float) -> None:
  """Raises UsageErrorOfAll where the engine's log-probabilities are too far from the trainer's.

  Args:
    settings: the group `engine`.
    gap: `rollout_logprob_gap` of a policy batch, the same in all processes.
  """
  if not gap <= settings.max_logprob_gap:  # not a number is too far as well
    raise UsageErrorOfAll(
      f"rollout_logprob_gap is {gap:.3g}, above engine.max_logprob_gap = {settings.max_logprob_gap:g}: the engine "
      "samples from another policy than the one that is trained; compare its weights, type and image processing with "
      "the trainer's (docs/rl_guide.md)"
    )


def check_engine(settings: Config) -> None:
  """Raises UsageError for a group `engine` that names no server or no folder."""
  check_url(settings.url)
  if not settings.folder.startswith("/") and settings.kind == "vllm":
    raise UsageError(
      f"engine.folder is {settings.folder!r}; the engine vllm needs the absolute path of a folder that this machine "
      "and the server share, for the weights of each update"
    )
