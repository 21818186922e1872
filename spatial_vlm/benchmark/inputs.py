"""Random rows of tokens with images, as NumPy arrays of the forms that the pipeline makes."""

from typing import Any, NamedTuple

import numpy as np

from spatial_vlm.model.config import ModelConfig
from spatial_vlm.processor.chat import image_positions
from spatial_vlm.processor.image import padded_vision
from spatial_vlm.types import Batch, Prompts

BEFORE_IMAGE = 4
"""Tokens of a conversation before its image."""


class RowShape(NamedTuple):
  """What every row holds: conversations of one image each and of equal length, one after the other."""

  tokens: int
  images: int
  grid: tuple[int, int]
  """Patches of an image, in rows and columns."""

  @property
  def patches(self) -> int:
    """Patches of a row."""
    return self.images * self.grid[0] * self.grid[1]

  def least_tokens(self, model: ModelConfig) -> int:
    """Returns the tokens that the images need, with a token of text after each."""
    visual = self.grid[0] * self.grid[1] // model.vision.merge_unit
    return self.images * (BEFORE_IMAGE + 2 + visual + 1)


def random_batch(model: ModelConfig, rows: int, shape: RowShape, seed: int) -> Batch:
  """Returns rows whose text after each image is to be predicted."""
  fields = _rows(model, rows, shape, seed)
  after_image = fields["segments"] > 0
  visual = fields["tokens"] == model.image_token_id
  seen = np.cumsum(fields["tokens"] == model.vision_end_token_id, axis=1)
  after_image &= (seen == fields["segments"]) & ~visual
  return Batch(targets=after_image, **fields)


def random_prompts(model: ModelConfig, rows: int, shape: RowShape, seed: int) -> Prompts:
  """Returns prompts of one image each, all of one length; half of the labels are true."""
  numbers = np.arange(rows, dtype=np.int32)
  return Prompts(ids=numbers, label=numbers % 2, **_rows(model, rows, shape, seed))


def _rows(model: ModelConfig, rows: int, shape: RowShape, seed: int) -> dict[str, Any]:
  rng = np.random.default_rng(seed)
  conversations, merge = shape.images, model.vision.spatial_merge_size
  length = shape.tokens // conversations
  tokens, positions = _conversation(model, length, shape.grid)
  text = tokens < 0
  tokens = np.tile(tokens, (rows, conversations, 1))
  drawn = rng.integers(0, text_ids(model), tokens.shape, np.int32)
  used = conversations * length
  padded = [(0, 0), (0, shape.tokens - used)]
  numbers = np.repeat(np.arange(1, conversations + 1, dtype=np.int32), length)
  images = [[_image(rng, model, shape.grid) for _ in range(conversations)] for _ in range(rows)]
  assert shape.patches % merge**2 == 0
  return {
    "tokens": np.pad(np.where(text, drawn, tokens).reshape(rows, used), padded),
    "segments": np.pad(np.tile(numbers, (rows, 1)), padded),
    "positions": np.pad(np.tile(positions, (rows, conversations, 1)), [*padded, (0, 0)]),
    "vision": padded_vision(images, model.vision, shape.patches),
  }


def text_ids(model: ModelConfig) -> int:
  """Returns the number of ids below all special ones."""
  return min(
    model.image_token_id,
    model.video_token_id,
    model.vision_start_token_id,
    model.vision_end_token_id,
  )


def _conversation(
  model: ModelConfig, length: int, grid: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens of a conversation, −1 for text, and their positions."""
  merge = model.vision.spatial_merge_size
  image = image_positions((1, *grid), merge, BEFORE_IMAGE + 1)
  visual = [model.vision_start_token_id, *[model.image_token_id] * len(image)]
  special = [-1] * BEFORE_IMAGE + visual + [model.vision_end_token_id]
  tokens = np.array(special + [-1] * (length - len(special)), np.int32)
  start = BEFORE_IMAGE + 1 + max(grid) // merge
  after = np.arange(start, start + length - BEFORE_IMAGE - 1 - len(image))
  before = np.arange(BEFORE_IMAGE + 1)
  lines = [np.repeat(line[:, None], 3, axis=1) for line in (before, after)]
  return tokens, np.concatenate([lines[0], image, lines[1]]).astype(np.int32)


def _image(rng: np.random.Generator, model: ModelConfig, grid: tuple[int, int]) -> tuple[Any, Any]:
  patches = rng.standard_normal((grid[0] * grid[1], model.vision.patch_dim), np.float32)
  return patches, (1, *grid)
