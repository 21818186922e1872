"""Attention of both towers and of the cache: rotary positions, masks, grouped-query attention.

Reference: transformers 5.23, models/qwen3_vl/modeling_qwen3_vl.py. Rotation and softmax are computed in float32.
`flash.attention` computes the same function as `plain_attention` with the platform's kernel, if there is one.
"""

from collections.abc import Sequence

import flax.struct
import jax
import numpy as np
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.stack import CONTEXT
from spatial_vlm.types import Pytree


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T H/2"]) -> Float[Array, "B T N H"]:
  """Applies rotary position embedding (RoFormer, Eq. 34) to pairs that are half a head width apart."""
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def mrope_angles(
  positions: Int[Array, "B T 3"], head_dim: int, theta: float, section: tuple[int, int, int]
) -> Float[Array, "B T {head_dim//2}"]:
  """Returns the angles of interleaved M-RoPE.

  Frequencies use the time, height or width position in the order THWTHW…THWTT…T.
  """
  axis = np.zeros(head_dim // 2, np.int32)
  for dim in (1, 2):
    axis[dim : 3 * section[dim] : 3] = dim
  return (
    positions[:, :, axis].astype(jnp.float32) * _inverse_frequencies(head_dim, theta)[None, None]
  )


def axial_angles(
  coords: Int[Array, "B M 2"], head_dim: int, theta: float
) -> Float[Array, "B M {head_dim//2}"]:
  """Returns 2-D rotary angles of the vision tower: half of the frequencies use the row, half the column."""
  frequencies = _inverse_frequencies(head_dim // 2, theta)
  angles = coords[..., None].astype(jnp.float32) * frequencies[None, None, None]
  return angles.reshape(*coords.shape[:2], head_dim // 2)


def _inverse_frequencies(dim: int, theta: float) -> np.ndarray:
  return (
    1 / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
  ).astype(np.float32)


def attention_mask(segments: Int[Array, "B T"], causal: bool) -> Bool[Array, "B T T"]:
  """Returns True where a query (first T) attends to a key: one of its segment and, if `causal`, not a later one.

  Padding (0) is a segment of its own: no real token attends to it, and no row of the mask is empty.
  """
  mask = segments[:, :, None] == segments[:, None, :]
  if not causal:
    return mask
  # Compared in the program: a constant of T × T would be part of it.
  token = jnp.arange(segments.shape[1])
  return mask & (token[:, None] >= token[None])[None]


def plain_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K U H"],
  v: Float[Array, "B K U H"],
  segments: Int[Array, "B U"],
  causal: bool,
) -> Float[Array, "B T N H"]:
  """Returns softmax(q kᵀ / √H) v under `attention_mask`, with G = N / K query heads per key-value head.

  Queries are those of the last T of U tokens.
  """
  mask = attention_mask(segments, causal)[:, None, None, -q.shape[1] :]
  grouped = scaled_queries(q, k)
  scores = jnp.einsum("bkgth,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(_masked(scores, mask), axis=-1).astype(v.dtype)
  return checkpoint_name(by_token(jnp.einsum("bkgts,bksh->bkgth", weights, v)), CONTEXT)


@flax.struct.dataclass
class CacheBlock(Pytree):
  """Keys and values of consecutive slots in one layer.

  A block has one row per query row, or fewer: then several consecutive query rows (the samples of a prompt) share a
  row. Keys are stored with the slots last, because a score sums over H.
  """

  keys: Float[Array, "b K H S"]
  values: Float[Array, "b K S H"]
  valid: Bool[Array, "b S"]


@flax.struct.dataclass
class LayersBlock(Pytree):
  """A `CacheBlock` of each layer, in stacks of consecutive layers (see `text.cache_stacks`)."""

  keys: tuple[Float[Array, "layers b K H S"], ...]
  values: tuple[Float[Array, "layers b K S H"], ...]
  valid: Bool[Array, "b S"]


@flax.struct.dataclass
class Prefixes(Pytree):
  """Keys and values of texts that the rows of a batch continue, each shared by several rows.

  With a leading axis of layers, or of one layer without it.
  """

  keys: Float[Array, "... P K S H"]
  values: Float[Array, "... P K S H"]
  valid: Bool[Array, "P S"]
  row: Int[Array, "B"] | None = None
  """Number of the text that each row of the batch begins with, −1: none. None: consecutive rows share a text, equally
  many each; devices that share the rows then need no text of another's."""

  def valid_of_rows(self, rows: int) -> Bool[Array, "B S"]:
    """Returns the filled slots of the text of each of B = `rows` rows."""
    valid = self._of_rows(self.valid, rows)
    return valid if self.row is None else valid & (self.row >= 0)[:, None]

  def before(
    self, keys: Float[Array, "B K T H"], values: Float[Array, "B K T H"]
  ) -> tuple[Float[Array, "B K U H"], Float[Array, "B K U H"]]:
    """Returns one layer's keys and values of each row, after those of its text: U = S + T slots."""
    rows = len(keys)
    keys = jnp.concatenate([self._of_rows(self.keys, rows), keys], axis=2)
    return keys, jnp.concatenate([self._of_rows(self.values, rows), values], axis=2)

  def _of_rows(self, texts: Array, rows: int) -> Array:
    return jnp.repeat(texts, rows // len(texts), axis=0) if self.row is None else texts[self.row]


def cached_attention(
  q: Float[Array, "B 1 N H"],
  k: Float[Array, "B K 1 H"],
  v: Float[Array, "B K 1 H"],
  blocks: Sequence[CacheBlock],
) -> Float[Array, "B 1 N H"]:
  """Returns the attention of one new token over the valid slots of a cache and over itself.

  The token's own key and value are separate arguments, so the cache is only read.
  """
  query = scaled_queries(q, k)[:, :, :, 0]
  scores = [_block_scores(query, block) for block in blocks]
  scores.append(jnp.einsum("bkgh,bkth->bkgt", query, k, preferred_element_type=jnp.float32))
  weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(v.dtype)
  ends = np.cumsum([block.values.shape[-2] for block in blocks]).tolist()
  *seen, itself = jnp.split(weights, ends, axis=-1)
  mixed = itself.astype(jnp.float32) * v.astype(jnp.float32)
  for of_block, block in zip(seen, blocks, strict=True):
    mixed += _block_mix(of_block, block)
  return by_token(mixed[:, :, :, None].astype(v.dtype))


def _block_scores(query: Float[Array, "B K G H"], block: CacheBlock) -> Float[Array, "B K G S"]:
  """Returns the scores of a block's slots, the lowest number at invalid ones."""
  shared = _shared(query, len(block.valid))
  scores = jnp.einsum("bkgh,bkhs->bkgs", shared, block.keys, preferred_element_type=jnp.float32)
  return _unshared(_masked(scores, block.valid[:, None, None]), len(query))


def _block_mix(weights: Float[Array, "B K G S"], block: CacheBlock) -> Float[Array, "B K G H"]:
  """Returns the weighted sum of a block's values, in float32: sums of blocks in bfloat16 would round once each."""
  shared = _shared(weights, len(block.valid))
  mixed = jnp.einsum("bkgs,bksh->bkgh", shared, block.values, preferred_element_type=jnp.float32)
  return _unshared(mixed, len(weights))


def _shared(x: Float[Array, "B K G X"], rows: int) -> Float[Array, "b K nG X"]:
  """Moves the n = B / b query rows that share a row of a block into its axis of query heads."""
  B, K, G, X = x.shape
  return x.reshape(rows, B // rows, K, G, X).swapaxes(1, 2).reshape(rows, K, B // rows * G, X)


def _unshared(x: Float[Array, "b K nG X"], rows: int) -> Float[Array, "B K G X"]:
  b, K, nG, X = x.shape
  n = rows // b
  return x.reshape(b, K, n, nG // n, X).swapaxes(1, 2).reshape(rows, K, nG // n, X)


def scaled_queries(
  q: Float[Array, "B T N H"], k: Float[Array, "B K S H"]
) -> Float[Array, "B K G T H"]:
  """Returns q / √H by key-value head."""
  return by_key_value_head(q * q.shape[-1] ** -0.5, k)


def by_key_value_head(
  q: Float[Array, "B T N H"], k: Float[Array, "B K S h"]
) -> Float[Array, "B K G T H"]:
  """Groups queries by key-value head, so that keys and values are not repeated."""
  B, T, N, H = q.shape
  K = k.shape[1]
  return q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)


def by_token(heads: Float[Array, "B K G T H"]) -> Float[Array, "B T N H"]:
  """Returns what `by_key_value_head` grouped, token by token."""
  B, K, G, T, H = heads.shape
  return heads.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)


def _masked(scores: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
  return jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
