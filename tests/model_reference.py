"""Reference models and inputs shared by the parity tests.

Whatever a row's images and positions need is computed here by transformers itself, never by this package,
so that an error in either is detected.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch
import transformers
from checkpoint_folders import read_checkpoint
from jax import numpy as jnp
from transformers.vision_utils import (
  get_vision_interpolation_indices_and_weights,
  get_vision_position_ids,
)

from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig, TextConfig, VisionConfig
from spatial_vlm.types import Batch, Params, Prompts, Vision

PAD = 0
_TINY = ModelConfig(
  vision=VisionConfig(
    depth=4,
    hidden_size=64,
    intermediate_size=144,
    num_heads=4,
    patch_size=8,
    temporal_patch_size=2,
    spatial_merge_size=2,
    in_channels=3,
    num_position_embeddings=7 * 7,
    out_hidden_size=128,
    deepstack_visual_indexes=(0, 2),
  ),
  text=TextConfig(
    vocab_size=601,
    hidden_size=128,
    intermediate_size=320,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=5e6,
    mrope_section=(6, 5, 5),
    max_position_embeddings=4096,
  ),
  tie_word_embeddings=True,
  image_token_id=598,
  video_token_id=599,
  vision_start_token_id=596,
  vision_end_token_id=597,
)
SIZES = {
  "tiny": _TINY,
  "without deepstack": dataclasses.replace(
    _TINY, vision=dataclasses.replace(_TINY.vision, deepstack_visual_indexes=())
  ),
  "small": ModelConfig(
    vision=VisionConfig(
      depth=6,
      hidden_size=192,
      intermediate_size=512,
      num_heads=8,
      patch_size=14,
      temporal_patch_size=2,
      spatial_merge_size=2,
      in_channels=3,
      num_position_embeddings=16 * 16,
      out_hidden_size=256,
      deepstack_visual_indexes=(1, 3, 5),
    ),
    text=TextConfig(
      vocab_size=2003,
      hidden_size=256,
      intermediate_size=704,
      num_hidden_layers=8,
      num_attention_heads=8,
      num_key_value_heads=2,
      head_dim=48,  # not hidden / heads
      rms_norm_eps=1e-5,
      rope_theta=1e6,
      mrope_section=(10, 7, 7),
      max_position_embeddings=4096,
    ),
    tie_word_embeddings=False,
    image_token_id=1990,
    video_token_id=1991,
    vision_start_token_id=1992,
    vision_end_token_id=1993,
  ),
  "large": ModelConfig(
    vision=VisionConfig(
      depth=12,
      hidden_size=256,
      intermediate_size=768,
      num_heads=4,
      patch_size=16,
      temporal_patch_size=2,
      spatial_merge_size=2,
      in_channels=3,
      num_position_embeddings=48 * 48,
      out_hidden_size=512,
      deepstack_visual_indexes=(3, 6, 9),
    ),
    text=TextConfig(
      vocab_size=5000,
      hidden_size=512,
      intermediate_size=1536,
      num_hidden_layers=12,
      num_attention_heads=8,
      num_key_value_heads=4,
      head_dim=64,
      rms_norm_eps=1e-6,
      rope_theta=5e6,
      mrope_section=(12, 10, 10),
      max_position_embeddings=4096,
    ),
    tie_word_embeddings=False,
    image_token_id=4990,
    video_token_id=4991,
    vision_start_token_id=4992,
    vision_end_token_id=4993,
  ),
}


@dataclasses.dataclass(frozen=True)
class Reference:
  """A random transformers model and the same weights as this package reads them."""

  model: transformers.Qwen3VLForConditionalGeneration
  config: ModelConfig
  params: Params
  folder: str


@dataclasses.dataclass(frozen=True)
class Case:
  """The same rows for both: keyword arguments of the reference, and a batch of this package."""

  hf: dict[str, torch.Tensor]
  batch: Batch
  prompts: Prompts

  @property
  def real(self) -> np.ndarray:
    return np.asarray(self.batch.segments) > 0


def rescaled_reference(config: ModelConfig) -> transformers.Qwen3VLForConditionalGeneration:
  """Random weights of a scale at which every part matters and logits have about unit variance."""
  description = transformers.Qwen3VLConfig(**config.to_huggingface())
  model = transformers.Qwen3VLForConditionalGeneration(description).eval().float()
  draw = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      noise = torch.randn(weight.shape, generator=draw)
      if weight.ndim == 1:  # norms and biases
        weight.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
      else:
        weight.copy_(noise / weight[0].numel() ** 0.5)
  return model


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Callable[[str], Reference]:
  """`reference("tiny")`: 1.6 M parameters, tied; "small": 12 M, untied; "large": 50 M."""

  @functools.cache
  def make(size: str) -> Reference:
    model = rescaled_reference(SIZES[size])
    folder = tmp_path_factory.mktemp(size)
    model.save_pretrained(folder)
    config, params = read_checkpoint(folder)
    assert config == SIZES[size]
    return Reference(model, config, params, str(folder))

  return make


def _texture(rng: np.random.Generator, grid: tuple[int, int], config: VisionConfig) -> np.ndarray:
  """Patches of a textured frame: noise over a slope, about unit scale, different at every place."""
  patches = grid[0] * grid[1]
  slope = np.linspace(-1, 1, patches)[:, None]
  return (rng.standard_normal((patches, config.patch_dim)) + slope).astype(np.float32)


def _vision(
  config: VisionConfig, rows: list[list[tuple]], patches: list[list[np.ndarray]]
) -> Vision:
  length = (
    max(sum(map(len, row)) for row in patches) + 2 * config.merge_unit
  )  # some padding for all
  B = len(rows)
  vision = Vision(
    patches=np.full((B, length, config.patch_dim), 7.0, np.float32),  # padding must not matter
    segments=np.zeros((B, length), np.int32),
    coords=np.zeros((B, length, 2), np.int32),
    pos_index=np.zeros((B, length, 4), np.int32),
    pos_weight=np.zeros((B, length, 4), np.float32),
  )
  side = int(config.num_position_embeddings**0.5)
  for b, (grids, frames) in enumerate(zip(rows, patches, strict=True)):
    start = 0
    for number, (grid, frame) in enumerate(zip(grids, frames, strict=True), start=1):
      here, thw = slice(start, start + len(frame)), torch.tensor([[1, *grid]])
      index, weight = get_vision_interpolation_indices_and_weights(
        thw, side, align_corners=True, spatial_merge_size=config.spatial_merge_size
      )
      vision.patches[b, here] = frame
      vision.segments[b, here] = number
      vision.coords[b, here] = get_vision_position_ids(thw, config.spatial_merge_size)
      vision.pos_index[b, here] = index
      vision.pos_weight[b, here] = weight
      start += len(frame)
  return vision


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
  """Makes rows for both models: `make_case(reference, [[3, (4, 6), 5], [8]], side="left")`.

  A number stands for text tokens, a pair for an image of so many patches (rows, columns).
  """

  def make(reference: Reference, rows: list[list], side: str = "right", seed: int = 0) -> Case:
    config, rng = reference.config, np.random.default_rng(seed)
    merge = config.vision.merge_unit
    tokens = []
    for row in rows:
      line = []
      for part in row:
        if isinstance(part, tuple):
          count = part[0] * part[1] // merge
          images = [config.image_token_id] * count
          line += [config.vision_start_token_id, *images, config.vision_end_token_id]
        else:
          line += rng.integers(1, config.vision_start_token_id, part).tolist()
      tokens.append(line)
    length = max(map(len, tokens))
    padded = np.full((len(rows), length), PAD, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for b, line in enumerate(tokens):
      here = slice(length - len(line), length) if side == "left" else slice(0, len(line))
      padded[b, here], mask[b, here] = line, 1
    grids = [[part for part in row if isinstance(part, tuple)] for row in rows]
    frames = [[_texture(rng, grid, config.vision) for grid in row] for row in grids]
    hf = {
      "input_ids": torch.tensor(padded, dtype=torch.long),
      "attention_mask": torch.tensor(mask, dtype=torch.long),
    }
    positions = np.repeat(np.maximum(mask.cumsum(1) - 1, 0)[..., None], 3, axis=-1)
    vision = None
    if any(grids):
      vision = _vision(config.vision, grids, frames)
      hf["pixel_values"] = torch.tensor(np.concatenate([frame for row in frames for frame in row]))
      hf["image_grid_thw"] = torch.tensor([[1, *grid] for row in grids for grid in row])
      hf["mm_token_type_ids"] = torch.tensor(padded == config.image_token_id, dtype=torch.int32)
      index = reference.model.model.get_rope_index(
        hf["input_ids"],
        hf["mm_token_type_ids"],
        image_grid_thw=hf["image_grid_thw"],
        attention_mask=hf["attention_mask"],
      )[0]
      positions = index.permute(1, 2, 0).numpy()
    shared = {
      "tokens": padded,
      "segments": mask,
      "positions": positions.astype(np.int32),
      "vision": vision,
    }
    unknown = np.full(len(rows), -1, np.int32)
    return Case(
      hf=hf,
      batch=Batch(targets=mask > 0, **shared),
      prompts=Prompts(ids=np.arange(len(rows), dtype=np.int32), label=unknown, **shared),
    )

  return make


@pytest.fixture(scope="session")
def greedy():
  """(params, config, prompts, steps) -> the likeliest tokens [B steps], by a cache that grows in two blocks."""
  return _greedy


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def _greedy(params, config, prompts, steps):
  def step(state, _):
    logits, cache = state
    token = jnp.argmax(logits, axis=-1)
    return qwen3_vl.decode(weights, config, token, cache), token

  weights = qwen3_vl.decoding_params(params, config)
  logits, cache = qwen3_vl.prefill(params, config, prompts)
  tokens = []
  for slots in (steps // 3, steps - steps // 3):
    cache = qwen3_vl.add_cache_block(cache, slots, len(logits))
    (logits, cache), written = jax.lax.scan(step, (logits, cache), length=slots)
    tokens.append(written)
  return jnp.concatenate(tokens).T
