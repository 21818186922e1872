"""The softmax over a vocabulary that may be cut over devices, each of which works on rows of its own.

A compiler that lays out a loop over pieces of rows by itself gathers the unembedding, and adds up its gradient over the
devices, in every turn. Here it is gathered once, before the loop, and its gradient is added up once, after it.
`axes` are the mesh axes that the vocabulary is cut over, none where it is whole; the logits are those of this device.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from spatial_vlm import sharding

Axes = tuple[str, ...]


def shifted(logits: Float[Array, "... V"], axes: Axes) -> Float[Array, "... V"]:
  """l − max_v l_v, the maximum being that of the whole vocabulary; no gradient passes through it."""
  highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  return logits - jax.lax.pmax(highest, axes)


def log_partition(logits: Float[Array, "... V"], axes: Axes) -> Float[Array, "..."]:
  """log Z = log Σ_v exp l_v of `shifted` logits, over the whole vocabulary."""
  return jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits), axis=-1), axes))


def target_values(
  values: Float[Array, "... V"], tokens: Int[Array, "..."], axes: Axes
) -> Float[Array, "..."]:
  """The value of each token, from the device that holds it."""
  size = values.shape[-1]
  own = tokens - (jax.lax.axis_index(axes) * size if axes else 0)
  value = jnp.take_along_axis(values, jnp.clip(own, 0, size - 1)[..., None], axis=-1)[..., 0]
  return jax.lax.psum(jnp.where((own >= 0) & (own < size), value, 0.0), axes)


def sharded_scores(score: Callable[..., Any], vocab_arrays: tuple[Array, ...], *rows: Array) -> Any:
  """`score(*vocab_arrays, *rows, axes=…)` on each device's part of the mesh that `jax.set_mesh` has set, if any.

  Args:
    score: its results have rows in front.
    vocab_arrays: arrays with the vocabulary as their last axis, which is cut over the mesh axis `tensor`.
    rows: arrays with rows in front, cut over the axes ROWS. Axes that do not divide are left out: their devices do the
      same work.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return score(*vocab_arrays, *rows, axes=())
  row_spec = P(sharding.divisible_axes(sharding.ROWS, mesh, len(rows[0])))
  axes = sharding.divisible_axes(("tensor",), mesh, vocab_arrays[0].shape[-1])
  vocab_specs = [P(*[None] * (array.ndim - 1), axes) for array in vocab_arrays]
  return jax.shard_map(
    functools.partial(score, axes=axes),
    in_specs=(*vocab_specs, *[row_spec] * len(rows)),
    out_specs=row_spec,
    check_vma=False,
  )(*vocab_arrays, *rows)
