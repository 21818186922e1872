"""Rotary positions, masks and grouped-query attention, for both towers and the cache.

Reference: transformers 5.23, models/qwen3_vl/modeling_qwen3_vl.py. Rotation and softmax are computed in float32.
"""

import jax
import numpy as np
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T H/2"]) -> Float[Array, "B T N H"]:
  """Rotary position embedding (RoFormer, Eq. 34), pairs taken half a head width apart."""
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def mrope_angles(
  positions: Int[Array, "B T 3"], head_dim: int, theta: float, section: tuple[int, int, int]
) -> Float[Array, "B T H/2"]:
  """Interleaved M-RoPE: frequency f turns with the time, height or width position in the order THWTHW…THWTT…T."""
  axis = np.zeros(head_dim // 2, np.int32)
  for dim in (1, 2):
    axis[dim : 3 * section[dim] : 3] = dim
  return positions[:, :, axis].astype(jnp.float32) * _inverse_frequencies(head_dim, theta)[None, None]


def axial_angles(
  coords: Int[Array, "B M 2"], head_dim: int, theta: float
) -> Float[Array, "B M H/2"]:
  """2-D rotary angles of the vision tower: the first half of the frequencies turns with the row, the second with the column."""
  frequencies = _inverse_frequencies(head_dim // 2, theta)
  angles = coords[..., None].astype(jnp.float32) * frequencies[None, None, None]
  return angles.reshape(*coords.shape[:2], head_dim // 2)


def _inverse_frequencies(dim: int, theta: float) -> np.ndarray:
  return (1 / np.float32(theta) ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)


def same_segment(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
  """True where query and key belong to the same segment; padding (0) belongs to none."""
  return (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]


def causal_same_segment(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
  """`same_segment`, and no key behind its query."""
  tokens = segments.shape[1]
  return same_segment(segments) & np.tri(tokens, dtype=bool)[None]


def attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B S K H"],
  v: Float[Array, "B S K H"],
  mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
  """softmax(q kᵀ / √H) v with N / K query heads to each key-value head.

  A query that may look at nothing (padding) gets the plain mean of v, never NaN.
  """
  grouped = _grouped(q, k.shape[2])
  # the order of the scores' axes is the one that a product gives without transposing them
  scores = jnp.einsum("btkgh,bskh->bktgs", grouped, k, preferred_element_type=jnp.float32)
  weights = _softmax(scores, mask[:, None, :, None]).astype(v.dtype)
  return jnp.einsum("bktgs,bskh->btkgh", weights, v).reshape(q.shape)


def cached_attention(
  q: Float[Array, "B 1 N H"],
  k: Float[Array, "B 1 K H"],
  v: Float[Array, "B 1 K H"],
  keys: Float[Array, "B S K H"],
  values: Float[Array, "B S K H"],
  valid: Bool[Array, "B S"],
) -> Float[Array, "B 1 N H"]:
  """Attention of one new token over the valid slots of a cache and over itself.

  The token's own key and value come apart from the cache, which is therefore only read here.
  """
  grouped = _grouped(q, k.shape[2])
  past = jnp.einsum("btkgh,bskh->bkgts", grouped, keys, preferred_element_type=jnp.float32)
  itself = jnp.einsum("btkgh,btkh->bkgt", grouped, k, preferred_element_type=jnp.float32)[..., None]
  scores = jnp.concatenate([past, itself], axis=-1)
  mask = jnp.pad(valid, ((0, 0), (0, 1)), constant_values=True)[:, None, None, None]
  weights = _softmax(scores, mask).astype(v.dtype)
  mixed = jnp.einsum("bkgts,bskh->btkgh", weights[..., :-1], values)
  own = jnp.einsum("bkgt,btkh->btkgh", weights[..., -1], v)
  return (mixed + own).reshape(q.shape)


def _grouped(q: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B T K N/K H"]:
  return (q * q.shape[-1] ** -0.5).reshape(*q.shape[:2], kv_heads, -1, q.shape[-1])


def _softmax(scores: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, "..."]:
  return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
