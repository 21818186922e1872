"""What a start of the bench measures: a model with random weights on this machine."""

import dataclasses
import functools
from typing import Any

from jax.sharding import Mesh

from spatial_vlm.benchmark.inputs import RowShape
from spatial_vlm.benchmark.limits import Limits
from spatial_vlm.benchmark.measure import Rounds
from spatial_vlm.benchmark.weights import random_params
from spatial_vlm.config import Config
from spatial_vlm.model.config import PRESETS, ModelConfig
from spatial_vlm.parameters.partition import EVERYTHING
from spatial_vlm.types import Params

_TINY = PRESETS["tiny"]
MODELS = PRESETS | {
  # 58 M parameters: a size between the tiny base and the published ones, for CPUs.
  "small": dataclasses.replace(
    _TINY,
    vision=dataclasses.replace(
      _TINY.vision,
      depth=6,
      hidden_size=256,
      intermediate_size=1024,
      num_position_embeddings=16 * 16,
      out_hidden_size=512,
      deepstack_visual_indexes=(1, 3),
    ),
    text=dataclasses.replace(
      _TINY.text,
      vocab_size=16_384,
      hidden_size=512,
      intermediate_size=1536,
      num_hidden_layers=12,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=64,
      mrope_section=(12, 10, 10),
    ),
    image_token_id=16_382,
    video_token_id=16_383,
    vision_start_token_id=16_380,
    vision_end_token_id=16_381,
  )
}
"""Name → sizes of the models that can be measured."""


@dataclasses.dataclass
class Subject:
  """A model, its weights in the type of inference, and how to time it."""

  config: Config
  model: ModelConfig
  mesh: Mesh
  limits: Limits
  rounds: Rounds
  peer: Any = None
  """The same model in transformers (`against_transformers.Peer`), or None."""

  @property
  def name(self) -> str:
    """The model's name in MODELS."""
    return self.config.model

  @functools.cached_property
  def params(self) -> Params:
    """Weights in the type of inference, made on the device."""
    frozen = dataclasses.replace(EVERYTHING, trainable=(), frozen_dtype=self.config.dtype)
    return random_params(self.mesh, self.model, frozen, self.config.seed)


def row_shape(group: Config) -> RowShape:
  """Returns the shape of the rows of a group of settings."""
  return RowShape(group.tokens, group.images, tuple(group.grid))
