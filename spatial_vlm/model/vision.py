"""The vision tower: maps patches of each row's frames to visual tokens, with DeepStack features.

Reference: transformers 5.23, `Qwen3VLVisionModel`. The host computes everything that depends on image sizes (`Vision`),
so shapes are static: a row may have several frames, and attention stays inside each. As in the decoder, blocks work on
the patches of all rows in one axis, R = B·M.
"""

import flax.struct
import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from spatial_vlm.model.attention import axial_angles, rotate
from spatial_vlm.model.config import LAYER_NORM_EPS, VISION_ROPE_THETA, VisionConfig
from spatial_vlm.model.flash import attention
from spatial_vlm.model.stack import (
  KEYS,
  QUERIES,
  VALUES,
  bind,
  init_block,
  init_stack,
  rematerialize,
)
from spatial_vlm.types import Params, Vision


@flax.struct.dataclass
class VisualFeatures:
  """Visual tokens of each row, in the order of the text."""

  embeds: Float[Array, "B L D"]
  deepstack: Float[Array, "n B L D"]
  """Entry j is added to the visual positions after text layer j."""


class PatchEmbed(nnx.Module):
  """Projects patches to width D and adds the learnt position grid, interpolated at each patch."""

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    self.proj = nnx.Linear(config.patch_dim, config.hidden_size, rngs=rngs, param_dtype=param_dtype)
    self.positions = nnx.Embed(
      config.num_position_embeddings,
      config.hidden_size,
      # The scale of the patches: with 0.02, a tower trained from scratch hardly learns positions.
      embedding_init=nnx.initializers.normal(0.5),
      rngs=rngs,
      param_dtype=param_dtype,
    )

  def __call__(
    self,
    patches: Float[Array, "R P"],
    pos_index: Int[Array, "R 4"],
    pos_weight: Float[Array, "R 4"],
  ) -> Float[Array, "R D"]:
    h = self.proj(patches.astype(self.proj.kernel.dtype))
    neighbours = self.positions(pos_index)  # (R, 4, D)
    # In float32, because interpolation weights in bfloat16 would shift the image.
    position = jnp.einsum("rnd,rn->rd", neighbours.astype(jnp.float32), pos_weight)
    return h + position.astype(h.dtype)


class VisionAttention(nnx.Module):
  """Computes multi-head attention inside each frame, with 2-D rotary positions."""

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    width, heads = config.hidden_size, (config.num_heads, config.head_dim)
    self.q_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.k_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.v_proj = nnx.LinearGeneral(width, heads, rngs=rngs, param_dtype=param_dtype)
    self.out_proj = nnx.LinearGeneral(
      heads, width, axis=(-2, -1), rngs=rngs, param_dtype=param_dtype
    )

  def __call__(
    self,
    x: Float[Array, "R D"],
    angles: Float[Array, "B M F"],
    segments: Int[Array, "B M"],
  ) -> Float[Array, "R D"]:
    B, M, _ = angles.shape

    def in_rows(heads):
      return heads.reshape(B, M, *heads.shape[1:])

    q = checkpoint_name(self.q_proj(x), QUERIES)
    k = checkpoint_name(self.k_proj(x), KEYS)
    v = checkpoint_name(self.v_proj(x), VALUES)
    q = rotate(in_rows(q), angles)
    k = rotate(in_rows(k), angles).swapaxes(1, 2)
    v = in_rows(v).swapaxes(1, 2)
    mixed = attention(q, k, v, segments, causal=False)
    return self.out_proj(mixed.reshape(B * M, *mixed.shape[2:]))


class VisionMlp(nnx.Module):
  """Computes two layers with tanh GELU."""

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    self.fc1 = nnx.Linear(
      config.hidden_size, config.intermediate_size, rngs=rngs, param_dtype=param_dtype
    )
    self.fc2 = nnx.Linear(
      config.intermediate_size, config.hidden_size, rngs=rngs, param_dtype=param_dtype
    )

  def __call__(self, x: Float[Array, "R D"]) -> Float[Array, "R D"]:
    return self.fc2(nnx.gelu(self.fc1(x), approximate=True))


class VisionBlock(nnx.Module):
  """Computes pre-norm attention and MLP."""

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    self.norm1 = _layer_norm(config.hidden_size, rngs, param_dtype)
    self.attention = VisionAttention(config, rngs=rngs, param_dtype=param_dtype)
    self.norm2 = _layer_norm(config.hidden_size, rngs, param_dtype)
    self.mlp = VisionMlp(config, rngs=rngs, param_dtype=param_dtype)

  def __call__(
    self,
    h: Float[Array, "R D"],
    angles: Float[Array, "B M F"],
    segments: Int[Array, "B M"],
  ) -> Float[Array, "R D"]:
    h = h + self.attention(self.norm1(h), angles, segments)
    return h + self.mlp(self.norm2(h))


class PatchMerger(nnx.Module):
  """Merges 2×2 neighbouring patches into a visual token of the text width; GELU is exact, unlike in the blocks."""

  norm_after_merge = False

  def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, param_dtype=jnp.float32):
    merged = config.hidden_size * config.merge_unit
    self.norm = _layer_norm(
      merged if self.norm_after_merge else config.hidden_size, rngs, param_dtype
    )
    self.fc1 = nnx.Linear(merged, merged, rngs=rngs, param_dtype=param_dtype)
    self.fc2 = nnx.Linear(merged, config.out_hidden_size, rngs=rngs, param_dtype=param_dtype)

  def __call__(self, h: Float[Array, "R D"]) -> Float[Array, "R/4 E"]:
    merged = (-1, self.fc1.in_features)
    x = self.norm(h.reshape(merged)) if self.norm_after_merge else self.norm(h).reshape(merged)
    return self.fc2(nnx.gelu(self.fc1(x), approximate=False))


class DeepStackMerger(PatchMerger):
  """Merges as `PatchMerger`, but normalises the four patches together."""

  norm_after_merge = True


def _layer_norm(width: int, rngs: nnx.Rngs, param_dtype) -> nnx.LayerNorm:
  # The fast variance E[x²] − E[x]² loses digits that parity with the reference needs.
  return nnx.LayerNorm(
    width, epsilon=LAYER_NORM_EPS, use_fast_variance=False, rngs=rngs, param_dtype=param_dtype
  )


def init_vision(config: VisionConfig, key: Array, dtype: jnp.dtype) -> Params:
  """Returns random parameters of the tower."""
  embed, blocks, merger, deepstack = jax.random.split(key, 4)
  taps = len(config.deepstack_visual_indexes)
  params = {
    "patch_embed": init_block(PatchEmbed, config, embed, dtype),
    "blocks": init_stack(VisionBlock, config, config.depth, blocks, dtype),
    "merger": init_block(PatchMerger, config, merger, dtype),
  }
  if taps:  # no file holds stacks of zero layers
    params["deepstack_mergers"] = init_stack(DeepStackMerger, config, taps, deepstack, dtype)
  return params


def vision_tower(
  params: Params, config: VisionConfig, vision: Vision, remat: str = "none"
) -> VisualFeatures:
  """Returns the L = M / 4 visual tokens of every row; tokens of padding patches are finite and meaningless.

  Raises:
    ValueError: M is not a multiple of a merge block, or `remat` is unknown.
  """
  B, M, _ = vision.patches.shape
  if M % config.merge_unit:
    raise ValueError(
      f"rows of {M} patches cannot be merged {config.merge_unit} by {config.merge_unit}; pad them to a"
      f" multiple of {config.merge_unit}."
    )
  h = bind(PatchEmbed, config, params["patch_embed"])(
    vision.patches.reshape(B * M, -1),
    vision.pos_index.reshape(B * M, 4),
    vision.pos_weight.reshape(B * M, 4),
  )
  h, taps = _run_blocks(params["blocks"], config, h, vision, remat)

  def merge_tap(merger_and_tap):
    merger, tap = merger_and_tap
    return bind(DeepStackMerger, config, merger)(tap)

  embeds = bind(PatchMerger, config, params["merger"])(h)
  tokens = (B, M // config.merge_unit, config.out_hidden_size)
  if config.deepstack_visual_indexes:
    deepstack = jax.lax.map(merge_tap, (params["deepstack_mergers"], taps))
  else:
    deepstack = jnp.zeros((0, *tokens), embeds.dtype)
  return VisualFeatures(embeds.reshape(tokens), deepstack.reshape(-1, *tokens))


def _run_blocks(
  blocks: Params, config: VisionConfig, h: Float[Array, "R D"], vision: Vision, remat: str
) -> tuple[Float[Array, "R D"], Float[Array, "n R D"]]:
  """Returns the last layer's output and the outputs of the layers of `deepstack_visual_indexes`.

  Layer i writes slot (number of these layers before i), so the last to write slot j is the j-th of these layers. Only
  this buffer of n + 1 slots is stored; the last slot takes the outputs of later layers.
  """
  angles = axial_angles(vision.coords, config.head_dim, VISION_ROPE_THETA)
  taps = config.deepstack_visual_indexes
  slots = jnp.asarray(np.searchsorted(taps, np.arange(config.depth)), jnp.int32)
  block = rematerialize(
    lambda layer, h: bind(VisionBlock, config, layer)(h, angles, vision.segments), remat
  )

  def step(carry, layer_and_slot):
    h, buffer = carry
    layer, slot = layer_and_slot
    h = block(layer, h)
    return (h, jax.lax.dynamic_update_index_in_dim(buffer, h, slot, axis=0)), None

  buffer = jnp.zeros((len(taps) + 1, *h.shape), h.dtype)
  (h, buffer), _ = jax.lax.scan(step, (h, buffer), (blocks, slots))
  return h, buffer[:-1]
