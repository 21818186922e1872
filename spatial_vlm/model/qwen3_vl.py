"""Qwen3-VL as pure functions of (params, config, input).

`forward` trains on whole rows, `read_prompts` and `forward_answers` on several answers to each prompt; `prefill` and
`decode` generate.

Reference: transformers 5.23, `Qwen3VLForConditionalGeneration`; Qwen3-VL technical report, arXiv 2511.21631.
Activations have the dtype of the parameters.
"""

from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.attention import LayersBlock, Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.stack import bind, init_block
from spatial_vlm.model.text import (
  Embedding,
  FinalNorm,
  cache_stacks,
  features_at_tokens,
  init_text,
  layer_stacks,
  run_layers,
  run_layers_cached,
)
from spatial_vlm.model.vision import VisualFeatures, init_vision, vision_tower
from spatial_vlm.types import Batch, Params, Prompts, Vision


@flax.struct.dataclass
class Cache:
  """Keys and values of the earlier tokens: a block of prompts, then blocks of answers, the last of which is filling.

  All rows write their next token into the same slot; if their prompts differ in length, `valid` has gaps. Positions are
  stored, not computed from lengths. The samples of a prompt share its block.
  """

  blocks: tuple[LayersBlock, ...]
  next_position: Int[Array, "B"]
  """M-RoPE position (the same on all three axes) of the next token."""
  used: Int[Array, ""]
  """Filled slots of the last block."""


def init_params(config: ModelConfig, key: Array, dtype: jnp.dtype = jnp.float32) -> Params:
  """Returns random parameters for training from scratch: kernels truncated normal with variance 1 / fan-in."""
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
  """Returns visual tokens and DeepStack features of each row; see `vision_tower`."""
  return vision_tower(params["vision"], config.vision, vision, remat)


def forward(
  params: Params, config: ModelConfig, batch: Batch, remat: str = "none"
) -> Float[Array, "B T D"]:
  """Returns hidden states after the final norm, the input of `logits`.

  Args:
    remat: rematerialization policy, a name in `stack.REMAT_POLICIES`.

  Raises:
    ValueError: `remat` is unknown, or the rows of vision do not divide the rows of text.
  """
  return _hidden(params, config, batch, remat, keep_cache=False)[0]


class ReadPrompts(NamedTuple):
  """What answers read of their prompts; its gradient is that of the prompts' part of the model."""

  last: Float[Array, "P D"]
  """Hidden states after the final norm at each prompt's last token."""
  keys: Float[Array, "layers P K S H"]
  values: Float[Array, "layers P K S H"]


def read_prompts(
  params: Params, config: ModelConfig, prompts: Prompts, remat: str = "none"
) -> ReadPrompts:
  """Reads prompts, padded on either side, for `forward_answers`; `remat` as in `forward`."""
  hidden, (keys, values) = _hidden(params, config, prompts, remat, keep_cache=True)
  return ReadPrompts(_at_last_token(hidden, prompts), keys, values)


def forward_answers(
  params: Params,
  config: ModelConfig,
  prompts: Prompts,
  read: ReadPrompts,
  answers: Batch,
  remat: str = "none",
) -> Float[Array, "R U D"]:
  """Returns what `forward` computes of rows of a prompt and an answer, from the prompt's last token on: U = 1 + T.

  A prompt is computed once for all its answers (Prefix Grouper, arXiv 2506.05433).

  Args:
    read: what `read_prompts` returned of `prompts`.
    answers: R rows of T tokens without images; each R / P consecutive ones continue one prompt, in positions too.
    remat: as in `forward`.
  """
  before = Prefixes(read.keys, read.values, valid=prompts.segments > 0)
  hidden, _ = _hidden(params, config, answers, remat, keep_cache=False, prefixes=before)
  last = jnp.repeat(read.last, len(hidden) // len(read.last), axis=0)
  return jnp.concatenate([last[:, None], hidden], axis=1)


def logits(
  params: Params, config: ModelConfig, hidden: Float[Array, "... D"]
) -> Float[Array, "... V"]:
  """Returns the logits of the next token, in float32 whatever the dtype of the parameters."""
  table = unembedding(params, config)
  return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)


def unembedding(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
  """Returns the unembedding matrix: the head's, or the embedding if they are tied."""
  owner = params["text"]["embed"] if config.tie_word_embeddings else params["head"]
  return owner["embedding"]


def prefill(
  params: Params, config: ModelConfig, prompts: Prompts, prefixes: Prefixes | None = None
) -> tuple[Float[Array, "B V"], Cache]:
  """Reads prompts, padded on either side.

  Args:
    prefixes: what `prefix_keys_values` returned of the texts that the prompts continue; they hold the rest.

  Returns:
    The logits of each row's last real token, and a full cache; `add_cache_block` makes room for `decode`.
  """
  hidden, (keys, values) = _hidden(params, config, prompts, "none", True, prefixes)
  hidden = _at_last_token(hidden, prompts)
  next_position, real = position_after(prompts), prompts.segments > 0
  if prefixes is not None:
    real = jnp.concatenate([prefixes.valid_of_rows(len(real)), real], axis=1)
  ends = np.cumsum(cache_stacks(config.text))[:-1].tolist()
  stacks = [tuple(jnp.split(x, ends)) for x in (keys.swapaxes(-1, -2), values)]
  cache = Cache(
    blocks=(LayersBlock(stacks[0], stacks[1], real),),
    next_position=next_position,
    used=jnp.int32(real.shape[1]),
  )
  return logits(params, config, hidden), cache


def position_after(prompts: Prompts) -> Int[Array, "B"]:
  """Returns the position of the first token of an answer, the same on the three axes."""
  real = prompts.segments > 0
  return jnp.max(prompts.positions, axis=(1, 2), where=real[..., None], initial=-1) + 1


def prefix_keys_values(
  params: Params, config: ModelConfig, tokens: Int[Array, "P S"], valid: Bool[Array, "P S"]
) -> tuple[Float[Array, "layers P K S H"], Float[Array, "layers P K S H"]]:
  """Returns keys and values of texts before the first image; padding follows each text."""
  text = params["text"]
  h = bind(Embedding, config.text, text["embed"])(tokens)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :, None], (*tokens.shape, 3))
  segments = valid.astype(jnp.int32)
  _, keys_values = run_layers(
    text["layers"], config.text, h, positions, segments, deepstack=None, keep_cache=True
  )
  return keys_values


def add_cache_block(cache: Cache, slots: int, rows: int) -> Cache:
  """Returns the cache with a new block of `slots` empty slots for `rows` answers, equally many per earlier row.

  The earlier blocks are not copied, even if several samples answer one prompt. A cache that grows block by block is
  read only as far as answers reach.
  """
  last = cache.blocks[-1]

  def empty(keys: Array, *shape: int) -> Array:
    layers, _, K = keys.shape[:3]
    return jnp.zeros((layers, rows, K, *shape), keys.dtype)

  H = last.keys[0].shape[3]
  block = LayersBlock(
    keys=tuple(empty(keys, H, slots) for keys in last.keys),
    values=tuple(empty(keys, slots, H) for keys in last.keys),
    valid=jnp.zeros((rows, slots), bool),
  )
  next_position = jnp.repeat(cache.next_position, rows // len(cache.next_position))
  return Cache((*cache.blocks, block), next_position, jnp.zeros_like(cache.used))


def decoding_params(params: Params, config: ModelConfig) -> Params:
  """Returns the parameters in the form of `decode`, to be made once before a loop over tokens."""
  layers = layer_stacks(params["text"]["layers"], config.text)
  return params | {"text": params["text"] | {"layers": layers}}


def decode(
  params: Params, config: ModelConfig, token: Int[Array, "B"], cache: Cache
) -> tuple[Float[Array, "B V"], Cache]:
  """Feeds one token per row; returns the logits of the next token, and the cache with this one.

  `params` are what `decoding_params` returns. The caller ensures that the last block has an empty slot; otherwise its
  last slot is overwritten.
  """
  text = params["text"]
  h = bind(Embedding, config.text, text["embed"])(token)
  positions = jnp.broadcast_to(cache.next_position[:, None, None], (*token.shape, 1, 3))
  h, kept = run_layers_cached(text["layers"], config.text, h, positions, cache.blocks)
  hidden = bind(FinalNorm, config.text, text["final_norm"])(h)

  def write(slots, new, axis):
    return jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), cache.used, axis)

  *full, filling = cache.blocks
  filling = LayersBlock(
    keys=tuple(
      write(keys, new.swapaxes(-1, -2), axis=-1)
      for keys, (new, _) in zip(filling.keys, kept, strict=True)
    ),
    values=tuple(
      write(values, new, axis=-2) for values, (_, new) in zip(filling.values, kept, strict=True)
    ),
    valid=write(filling.valid, jnp.ones_like(token, bool)[:, None], axis=-1),
  )
  cache = Cache((*full, filling), cache.next_position + 1, cache.used + 1)
  return logits(params, config, hidden), cache


def visual_slots(tokens: Int[Array, "B T"], config: ModelConfig) -> Int[Array, "B T"]:
  """Returns each token's number among the visual tokens of its row, −1 for text."""
  visual = (tokens == config.image_token_id) | (tokens == config.video_token_id)
  return jnp.where(visual, jnp.cumsum(visual, axis=1) - 1, -1)


def _at_last_token(hidden: Float[Array, "B T D"], prompts: Prompts) -> Float[Array, "B D"]:
  """Returns the hidden states of each row's last real token."""
  real = prompts.segments > 0
  last = real.shape[1] - 1 - jnp.argmax(real[:, ::-1], axis=1)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _hidden(
  params: Params,
  config: ModelConfig,
  rows: Batch | Prompts,
  remat: str,
  keep_cache: bool,
  prefixes: Prefixes | None = None,
) -> tuple[Float[Array, "B T D"], Any]:
  """Returns hidden states after the final norm, and the keys and values of `run_layers`."""
  text = params["text"]
  h = bind(Embedding, config.text, text["embed"])(rows.tokens)
  deepstack = None
  if rows.vision is not None:
    features = _repeat_for_samples(
      encode_vision(params, config, rows.vision, remat), len(rows.tokens)
    )
    slots = visual_slots(rows.tokens, config)
    h = jnp.where(slots[..., None] >= 0, features_at_tokens(features.embeds, slots), h)
    deepstack = (features.deepstack, slots)
  layers, of_text = text["layers"], config.text
  h, keys_values = run_layers(
    layers, of_text, h, rows.positions, rows.segments, deepstack, remat, keep_cache, prefixes
  )
  return bind(FinalNorm, config.text, text["final_norm"])(h), keys_values


def _repeat_for_samples(features: VisualFeatures, rows: int) -> VisualFeatures:
  """Repeats features for the samples of a group, which share their images."""
  images = features.embeds.shape[0]
  if rows % images:
    raise ValueError(
      f"{rows} rows of tokens cannot share {images} rows of vision; give each group of rows one vision row, all groups"
      " of one size."
    )
  samples = rows // images
  return VisualFeatures(
    embeds=jnp.repeat(features.embeds, samples, axis=0),
    deepstack=jnp.repeat(features.deepstack, samples, axis=1),
  )
