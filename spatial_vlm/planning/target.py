"""What a plan is made for: a model on a TPU topology."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spatial_vlm.huggingface.folder import find_folder, read_model_config
from spatial_vlm.model.config import PRESETS, ModelConfig
from spatial_vlm.planning.chips import Chip, topology_devices


@dataclasses.dataclass(frozen=True)
class Target:
  """A model and the chips that its programs are compiled for."""

  model: ModelConfig
  topology: str
  slices: int
  chip: Chip
  devices: Sequence[Any]


def make_target(model: ModelConfig, topology: str, slices: int) -> Target:
  """Builds the target for a model on so many slices of a topology, e.g. `v5e:4x8`.

  Raises:
    ValueError: the topology or the number of slices does not exist.
    ImportError: libtpu is not installed.
  """
  if slices < 1:
    raise ValueError(f"--slices is {slices}; give 1 or more")
  chip, devices = topology_devices(topology, slices)
  return Target(model, topology, slices, chip, devices)


def choose_model(preset: str | None, checkpoint: str) -> ModelConfig:
  """Returns the named size of the model; without a name, that of the checkpoint, or 8b if there is none either."""
  if preset or not checkpoint:
    return PRESETS[preset or "8b"]
  return read_model_config(find_folder(checkpoint))
