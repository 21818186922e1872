"""The programs that a command would run, traced from its config with shapes in place of arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatial_vlm.config import Config, UsageError
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.planning.compiled import Program
from spatial_vlm.planning.inference_programs import (
  answer_programs,
  behaviors_programs,
  evaluate_programs,
  serve_programs,
  synthesize_programs,
)
from spatial_vlm.planning.rl_programs import dapo_programs
from spatial_vlm.planning.training_programs import sft_programs

PROGRAMS: Mapping[str, Callable[[Config, ModelConfig, Sequence[Any]], list[Program]]] = {
  "sft": sft_programs,
  "dapo": dapo_programs,
  "evaluate": evaluate_programs,
  "behaviors": behaviors_programs,
  "answer": answer_programs,
  "serve": serve_programs,
  "synthesize": synthesize_programs,
}
"""Command (the leaf `algorithm` of its configs) → function that traces its programs on these devices."""


def trace_programs(config: Config, model: ModelConfig, devices: Sequence[Any]) -> list[Program]:
  """Traces the programs of a config's command on these devices, after the command's own checks.

  Raises:
    UsageError, ValueError: the command would refuse the config.
  """
  return PROGRAMS[algorithm_of(config)](config, model, devices)


def algorithm_of(config: Config) -> str:
  """Returns the command that a config is for; raises UsageError if none of its programs can be planned."""
  algorithm = config.get("algorithm")
  if not isinstance(algorithm, str) or algorithm not in PROGRAMS:
    raise UsageError(
      f"the config's algorithm is {algorithm!r}; programs can be planned for {', '.join(PROGRAMS)}: "
      "give a preset of one of their files in configs/"
    )
  return algorithm
