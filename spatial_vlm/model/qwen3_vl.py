"""Qwen3-VL as pure functions of (params, config, input): train with `forward`, generate with `prefill` and `decode`.

Reference: transformers 5.23, `Qwen3VLForConditionalGeneration`; Qwen3-VL technical report, arXiv 2511.21631.
Activations take the dtype of the parameters.
"""

from typing import Any

import flax.struct
import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int

from spatial_vlm.model.attention import CacheBlock
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.stack import bind, init_block
from spatial_vlm.model.text import (
  Embedding,
  FinalNorm,
  init_text,
  place,
  run_layers,
  run_layers_cached,
)
from spatial_vlm.model.vision import VisualFeatures, init_vision, vision_tower
from spatial_vlm.types import Batch, Params, Prompts, Vision


@flax.struct.dataclass
class Cache:
  """What `decode` knows of the tokens before: a block of the prompts, then blocks of the answers, the last one filling.

  All rows write their next token into the same slot; where their prompts differ in length, `valid` has gaps.
  Positions are carried here, never recomputed from lengths. Several samples of a prompt share its block.
  """

  blocks: tuple[CacheBlock, ...]
  """Of all layers: keys [layers b K H S], values [layers b K S H]."""
  next_position: Int[Array, "B"]
  """M-RoPE position (the same on all three axes) of the next token."""
  used: Int[Array, ""]
  """Filled slots of the last block."""


def init_params(config: ModelConfig, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
  """Random parameters to train from scratch: kernels truncated normal with variance 1 / fan-in.

  Under `jax.eval_shape` gives the shapes alone, for any size.
  """
  vision, text, head = jax.random.split(key, 3)
  params = {
    "vision": init_vision(config.vision, vision, dtype),
    "text": init_text(config.text, text, dtype),
  }
  if not config.tie_word_embeddings:
    params["head"] = init_block(Embedding, config.text, head, dtype)
  return params


def encode_vision(
  params: Params, config: ModelConfig, vision: Vision, remat: str = "none"
) -> VisualFeatures:
  """Visual tokens and DeepStack features of each row, see `vision_tower`."""
  return vision_tower(params["vision"], config.vision, vision, remat)


def forward(
  params: Params, config: ModelConfig, batch: Batch, remat: str = "none"
) -> Float[Array, "B T D"]:
  """Hidden states after the final norm; `logits` turns (some of) them into scores.

  Args:
    remat: what the backward pass keeps of each layer, a name of `stack.REMAT_POLICIES`.

  Raises:
    ValueError: unknown `remat`, or rows of text that the rows of vision do not divide.
  """
  return _hidden(params, config, batch, remat, keep_cache=False)[0]


def logits(
  params: Params, config: ModelConfig, hidden: Float[Array, "... D"]
) -> Float[Array, "... V"]:
  """Scores of the next token, in float32 whatever the dtype of the parameters."""
  table = unembedding(params, config)
  return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def unembedding(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
  """The table that `logits` multiplies with: the head's, or the embedding when they are tied."""
  owner = params["text"]["embed"] if config.tie_word_embeddings else params["head"]
  return owner["embedding"]


def prefill(
  params: Params, config: ModelConfig, prompts: Prompts
) -> tuple[Float[Array, "B V"], Cache]:
  """Reads prompts, padded on either side.

  Returns:
    logits of each row's last real token, and a full cache: `with_room` makes place to `decode`.
  """
  hidden, (keys, values) = _hidden(params, config, prompts, remat="none", keep_cache=True)
  real = prompts.segments > 0
  tokens = real.shape[1]
  last = tokens - 1 - jnp.argmax(real[:, ::-1], axis=1)
  hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
  cache = Cache(
    blocks=(CacheBlock(keys.swapaxes(-1, -2), values, real),),
    next_position=jnp.max(prompts.positions, axis=(1, 2), where=real[..., None], initial=-1) + 1,
    used=jnp.int32(tokens),
  )
  return logits(params, config, hidden), cache


def with_room(cache: Cache, slots: int, rows: int) -> Cache:
  """The cache with a new block of `slots` empty slots for `rows` answers, equally many to each row there was.

  Nothing is copied: the blocks there were stay as they are, also when several samples answer the same prompt. A
  cache that grows block by block is read only as far as answers reach.
  """
  last = cache.blocks[-1]
  layers, _, K, H, _ = last.keys.shape
  empty = CacheBlock(
    keys=jnp.zeros((layers, rows, K, H, slots), last.keys.dtype),
    values=jnp.zeros((layers, rows, K, slots, H), last.values.dtype),
    valid=jnp.zeros((rows, slots), bool),
  )
  next_position = jnp.repeat(cache.next_position, rows // len(cache.next_position))
  return Cache((*cache.blocks, empty), next_position, jnp.zeros_like(cache.used))


def decode(
  params: Params, config: ModelConfig, token: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
  """Feeds one token a row; returns the logits of the token after it.

  The caller keeps within the room of the last block; a step beyond would overwrite its last slot.
  """
  text = params["text"]
  h = bind(Embedding, config.text, text["embed"])(token)
  positions = jnp.broadcast_to(cache.next_position[:, None, None], (*token.shape, 1, 3))
  h, (keys, values) = run_layers_cached(text["layers"], config.text, h, positions, cache.blocks)
  hidden = bind(FinalNorm, config.text, text["final_norm"])(h)

  def write(slots, new, axis):
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), cache.used, axis)

  *full, filling = cache.blocks
  filling = CacheBlock(
    keys=write(filling.keys, keys.swapaxes(-1, -2), axis=-1),
    values=write(filling.values, values, axis=-2),
    valid=write(filling.valid, jnp.ones_like(token, bool)[:, None], axis=-1),
  )
  cache = Cache((*full, filling), cache.next_position + 1, cache.used + 1)
  return logits(params, config, hidden), cache


def visual_slots(tokens: Int[Array, "B T"], config: ModelConfig) -> Int[Array, "B T"]:
  """For each token the number of its visual token in the row, −1 where the token is text."""
  visual = (tokens == config.image_token_id) | (tokens == config.video_token_id)
  return jnp.where(visual, jnp.cumsum(visual, axis=1) - 1, -1)


def _hidden(
  params: Params, config: ModelConfig, rows: Batch | Prompts, remat: str, keep_cache: bool
) -> tuple[Float[Array, "B T D"], Any]:
  """Hidden states after the final norm, and what `run_layers` keeps."""
  text = params["text"]
  h = bind(Embedding, config.text, text["embed"])(rows.tokens)
  deepstack = None
  if rows.vision is not None:
    features = _for_each_sample(encode_vision(params, config, rows.vision, remat), len(rows.tokens))
    slots = visual_slots(rows.tokens, config)
    h = jnp.where(slots[..., None] >= 0, place(features.embeds, slots), h)
    deepstack = (features.deepstack, slots)
  h, keys_values = run_layers(
    text["layers"], config.text, h, rows.positions, rows.segments, deepstack, remat, keep_cache
  )
  return bind(FinalNorm, config.text, text["final_norm"])(h), keys_values


def _for_each_sample(features: VisualFeatures, rows: int) -> VisualFeatures:
  """Features repeated for the samples of a group, which share their images."""
  images = features.embeds.shape[0]
  if rows % images:
    raise ValueError(
      f"{rows} rows of tokens cannot share {images} rows of vision; give one vision row to each group of rows, all"
      " groups of one size."
    )
  samples = rows // images
  return VisualFeatures(
    embeds=jnp.repeat(features.embeds, samples, axis=0),
    deepstack=jnp.repeat(features.deepstack, samples, axis=1),
  )
