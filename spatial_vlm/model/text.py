"""The Qwen3 decoder: RMSNorm, QK-norm, grouped-query attention with interleaved M-RoPE, SwiGLU, DeepStack.

Reference: transformers 5.23, `Qwen3VLTextModel`. Layers work on the tokens of all rows in one axis, R = B·T, because
products of matrices, the backward ones above all, are twice as fast on CPUs; only attention splits the axis into rows.
A layer's attention, over the row or over a cache, is passed in as a function of queries, keys and values.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from spatial_vlm.model.attention import (
  CacheBlock,
  LayersBlock,
  Prefixes,
  mrope_angles,
  rotate,
)
from spatial_vlm.model.config import TextConfig
from spatial_vlm.model.flash import attention, shard_mapped_cached_attention
from spatial_vlm.model.stack import (
  KEYS,
  QUERIES,
  VALUES,
  bind,
  init_block,
  init_stack,
  rematerialize,
)
from spatial_vlm.types import Params

Attend = Callable[[Array, Array, Array], Array]
"""(q [B T N H], k [B K T H], v [B K T H]) -> [B T N H]"""


class RmsNorm(nnx.Module):
  """Computes x / rms(x) · scale; casts to the input's dtype before scaling, as the reference does."""

  def __init__(self, width: int, eps: float, *, param_dtype=jnp.float32):
    self.scale = nnx.Param(jnp.ones(width, param_dtype))
    self.eps = eps

  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * jnp.expand_dims(self.scale[...], range(x.ndim - 1))


class TextAttention(nnx.Module):
  """Computes projections, QK-norm and rotation around an attention function of the caller."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    def project(features_in, features_out, axis: int | tuple[int, ...] = -1):
      return nnx.LinearGeneral(
        features_in, features_out, axis=axis, use_bias=False, rngs=rngs, param_dtype=param_dtype
      )

    width, H = config.hidden_size, config.head_dim
    N, K = config.num_attention_heads, config.num_key_value_heads
    self.q_proj = project(width, (N, H))
    self.k_proj = project(width, (K, H))
    self.v_proj = project(width, (K, H))
    self.o_proj = project((N, H), width, axis=(-2, -1))
    self.q_norm = RmsNorm(H, config.rms_norm_eps, param_dtype=param_dtype)
    self.k_norm = RmsNorm(H, config.rms_norm_eps, param_dtype=param_dtype)

  def __call__(
    self, x: Float[Array, "R D"], angles: Float[Array, "B T F"], attend: Attend
  ) -> tuple[Float[Array, "R D"], tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]]:
    B, T, _ = angles.shape

    def in_rows(heads):
      return heads.reshape(B, T, *heads.shape[1:])

    # Named before norm and rotation, because the backward passes of these read them.
    q = checkpoint_name(self.q_proj(x), QUERIES)
    k = checkpoint_name(self.k_proj(x), KEYS)
    v = checkpoint_name(self.v_proj(x), VALUES)
    q = rotate(in_rows(self.q_norm(q)), angles)
    k = rotate(in_rows(self.k_norm(k)), angles).swapaxes(1, 2)
    v = in_rows(v).swapaxes(1, 2)
    mixed = attend(q, k, v)
    return self.o_proj(mixed.reshape(B * T, *mixed.shape[2:])), (k, v)


class TextMlp(nnx.Module):
  """Computes SwiGLU."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    def project(features_in, features_out):
      return nnx.Linear(
        features_in, features_out, use_bias=False, rngs=rngs, param_dtype=param_dtype
      )

    self.gate_proj = project(config.hidden_size, config.intermediate_size)
    self.up_proj = project(config.hidden_size, config.intermediate_size)
    self.down_proj = project(config.intermediate_size, config.hidden_size)

  def __call__(self, x: Float[Array, "R D"]) -> Float[Array, "R D"]:
    return self.down_proj(nnx.silu(self.gate_proj(x)) * self.up_proj(x))


class TextLayer(nnx.Module):
  """Computes pre-norm attention and MLP; returns the layer's output, and its keys and values."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    eps, width = config.rms_norm_eps, config.hidden_size
    self.input_norm = RmsNorm(width, eps, param_dtype=param_dtype)
    self.attention = TextAttention(config, rngs=rngs, param_dtype=param_dtype)
    self.post_attention_norm = RmsNorm(width, eps, param_dtype=param_dtype)
    self.mlp = TextMlp(config, rngs=rngs, param_dtype=param_dtype)

  def __call__(
    self, h: Float[Array, "R D"], angles: Float[Array, "B T F"], attend: Attend
  ) -> tuple[Float[Array, "R D"], tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]]:
    mixed, keys_values = self.attention(self.input_norm(h), angles, attend)
    h = h + mixed
    return h + self.mlp(self.post_attention_norm(h)), keys_values


class Embedding(nnx.Module):
  """Looks up tokens in a table of V vectors; the head's table (tied or separate) has the same form."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    shape = (config.vocab_size, config.hidden_size)
    self.embedding = nnx.Param(nnx.initializers.normal(0.1)(rngs.params(), shape, param_dtype))

  def __call__(self, tokens: Int[Array, "..."]) -> Float[Array, "... D"]:
    return self.embedding[...][tokens]


class FinalNorm(RmsNorm):
  """Computes the norm after the last layer."""

  def __init__(self, config: TextConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    super().__init__(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)


def init_text(config: TextConfig, key: Array, dtype: jnp.dtype) -> Params:
  """Returns random parameters of the decoder, without a head."""
  embed, layers, norm = jax.random.split(key, 3)
  return {
    "embed": init_block(Embedding, config, embed, dtype),
    "layers": init_stack(TextLayer, config, config.num_hidden_layers, layers, dtype),
    "final_norm": init_block(FinalNorm, config, norm, dtype),
  }


def features_at_tokens(
  features: Float[Array, "B L D"], slots: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
  """Returns feature `slots[b, t]` of row b at token t, zero where the slot is −1.

  A slot beyond L (more visual tokens in the text than features) gives NaN, so that the mistake is seen; a clamped index
  would show a wrong image.
  """
  taken = jnp.take_along_axis(features, jnp.maximum(slots, 0)[..., None], axis=1, mode="fill")
  return jnp.where(slots[..., None] >= 0, taken, 0)


def run_layers(
  layers: Params,
  config: TextConfig,
  h: Float[Array, "B T D"],
  positions: Int[Array, "B T 3"],
  segments: Int[Array, "B T"],
  deepstack: tuple[Float[Array, "n B L D"], Int[Array, "B T"]] | None,
  remat: str = "none",
  keep_cache: bool = False,
  prefixes: Prefixes | None = None,
) -> tuple[Float[Array, "B T D"], Any]:
  """Runs all layers over whole rows, causal inside each segment.

  Args:
    deepstack: (features, their slots in the text), or None without images.
    keep_cache: whether to return keys and values.
    prefixes: texts that the rows (of one segment) continue; their keys and values precede those of the rows.

  Returns:
    The last layer's output, and keys and values [layers B K T H] or None. T includes the slots of `prefixes`.
  """
  angles = text_angles(config, positions)

  def with_visual(h, number):
    if deepstack is None or not len(deepstack[0]):
      return h
    features, slots = deepstack
    return jax.lax.cond(
      number < len(features),
      lambda h: h + features_at_tokens(features[number], slots).reshape(h.shape),
      lambda h: h,
      h,
    )

  def layer(of_layer, h):
    params, number, slots = of_layer
    if prefixes is None:
      attend = functools.partial(attention, segments=segments, causal=True)
      h, keys_values = bind(TextLayer, config, params)(h, angles, attend)
    else:
      texts = prefixes.replace(keys=slots[0], values=slots[1])
      attend = functools.partial(attention_after_prefix, segments=segments, prefixes=texts)
      h, keys_values = bind(TextLayer, config, params)(h, angles, attend)
      keys_values = texts.before(*keys_values)
    return with_visual(h, number), keys_values if keep_cache else None

  # One scan over the whole stacks: slicing them would copy weights, and a large frozen model leaves no room for it.
  layer = rematerialize(layer, remat)
  numbers = jnp.arange(config.num_hidden_layers)
  slots = None if prefixes is None else (prefixes.keys, prefixes.values)
  rows, h = h.shape, h.reshape(-1, h.shape[-1])
  h, kept = jax.lax.scan(lambda h, of_layer: layer(of_layer, h), h, (layers, numbers, slots))
  return h.reshape(rows), kept


def attention_after_prefix(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K T H"],
  v: Float[Array, "B K T H"],
  segments: Int[Array, "B T"],
  prefixes: Prefixes,
) -> Float[Array, "B T N H"]:
  """Returns causal attention of rows (of segment 1) over the text before them and over themselves."""
  before = prefixes.valid_of_rows(len(segments)).astype(segments.dtype)
  segments = jnp.concatenate([before, segments], axis=1)
  return attention(q, *prefixes.before(k, v), segments, causal=True)


UNROLLED_LAYERS = 16
"""Most layers that decoding unrolls. A scan over layers copies each layer's weights and slots at every token on CPUs;
unrolled, a deep model takes long to compile, and on TPUs a scan copies nothing."""


def cache_stacks(config: TextConfig) -> list[int]:
  """Returns the number of layers in each stack of a cache: one, or all of a deep model."""
  layers = config.num_hidden_layers
  return [1] * layers if layers <= UNROLLED_LAYERS else [layers]


def layer_stacks(layers: Params, config: TextConfig) -> tuple[Params, ...]:
  """Returns the layers in the stacks of `cache_stacks`, for `run_layers_cached`.

  To be called before a loop over tokens: inside of it, a slice of the weights is a copy at every token.
  """
  sizes = cache_stacks(config)
  if len(sizes) == 1:
    return (layers,)
  firsts = np.cumsum([0, *sizes[:-1]]).tolist()
  return tuple(
    jax.tree.map(lambda x, now=slice(first, first + size): x[now], layers)
    for first, size in zip(firsts, sizes, strict=True)
  )


def run_layers_cached(
  stacks: Sequence[Params],
  config: TextConfig,
  h: Float[Array, "B D"],
  positions: Int[Array, "B 1 3"],
  blocks: Sequence[LayersBlock],
) -> tuple[
  Float[Array, "B D"],
  list[tuple[Float[Array, "layers B K 1 H"], Float[Array, "layers B K 1 H"]]],
]:
  """Runs all layers over one new token, which attends to the valid slots of the blocks and to itself.

  Args:
    stacks: what `layer_stacks` returns.

  Returns:
    The last layer's output, and the token's keys and values in each stack of layers. The blocks are only read; the
    caller writes the token into one of them once, in place.
  """
  angles = text_angles(config, positions)

  def step(h, layer):
    params, slots = layer
    of_layer = [CacheBlock(k, v, b.valid) for b, (k, v) in zip(blocks, slots, strict=True)]
    attend = functools.partial(shard_mapped_cached_attention, blocks=of_layer)
    return bind(TextLayer, config, params)(h, angles, attend)

  kept = []
  for number, stack in enumerate(stacks):
    slots = [(block.keys[number], block.values[number]) for block in blocks]
    h, keys_values = jax.lax.scan(step, h, (stack, slots), unroll=len(stacks) > 1)
    kept.append(keys_values)
  return h, kept


def text_angles(config: TextConfig, positions: Int[Array, "B T 3"]) -> Float[Array, "B T F"]:
  """Returns the angles of the decoder's interleaved M-RoPE."""
  return mrope_angles(positions, config.head_dim, config.rope_theta, config.mrope_section)
