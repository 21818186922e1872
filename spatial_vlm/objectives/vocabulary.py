"""The softmax over a vocabulary that may be sharded, while each device works on its own rows.

Left to XLA, a loop over pieces of rows gathers the unembedding and reduces its gradient over the devices in every
iteration. Here the unembedding is gathered once before the loop, and its gradient is reduced once after it. `axes` are
the mesh axes that shard the vocabulary (none where it is whole); logits are this device's part.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from spatial_vlm import sharding

Axes = tuple[str, ...]


def shifted(logits: Float[Array, "... V"], axes: Axes) -> Float[Array, "... V"]:
  """Returns l − max_v l_v over the whole vocabulary; the maximum has no gradient."""
  highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  return logits - jax.lax.pmax(highest, axes)


def log_partition(logits: Float[Array, "... V"], axes: Axes) -> Float[Array, "..."]:
  """Returns log Z = log Σ_v exp l_v of `shifted` logits, over the whole vocabulary."""
  return jnp.log(jax.lax.psum(jnp.sum(jnp.exp(logits), axis=-1), axes))


def target_values(
  values: Float[Array, "... V"], tokens: Int[Array, "..."], axes: Axes
) -> Float[Array, "..."]:
  """Returns the value of each token, from the device that holds it."""
  size = values.shape[-1]
  own = tokens - (jax.lax.axis_index(axes) * size if axes else 0)
  value = jnp.take_along_axis(values, jnp.clip(own, 0, size - 1)[..., None], axis=-1)[..., 0]
  return jax.lax.psum(jnp.where((own >= 0) & (own < size), value, 0.0), axes)


def sharded_scores(
  score: Callable[..., Any], vocab_arrays: tuple[Array | np.ndarray, ...], *rows: Array
) -> Any:
  """Calls `score(*vocab_arrays, *rows, axes=…)` on each device's shard of the mesh of `jax.set_mesh`, if any.

  Args:
    score: returns arrays whose first axis is rows.
    vocab_arrays: arrays whose last axis is the vocabulary, sharded over the mesh axis `tensor`.
    rows: arrays whose first axis is rows, sharded over the axes ROWS. Axes that do not divide the rows are dropped:
      their devices do the same work.
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
