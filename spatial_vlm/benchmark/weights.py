"""Random weights of any size, drawn on the devices."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.partition import Subset, flatten, unflatten
from spatial_vlm.parameters.paths import parameter_row, split_axes
from spatial_vlm.types import Params

STACKS = ("text/layers/", "vision/blocks/", "vision/deepstack_mergers/")
"""Beginnings of the paths of parameters that have a layer axis."""
DEVIATIONS = {"scale": 0.1, "bias": 0.02, "embedding": 0.1}
"""Standard deviations of parameters that are no kernels, by the last name of the path."""


def random_params(mesh: Mesh, model: ModelConfig, subset: Subset, seed: int) -> Params:
  """Returns random weights over the mesh, in the types in which training stores them.

  They are drawn one layer of one parameter at a time, so memory holds little besides the result.
  """
  params = {}
  for path, leaf in flatten(training_shapes(mesh, model, subset)).items():
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(path.encode())))
    params[path] = _draw(
      key,
      float(path.endswith("/scale")),
      _deviation(path, leaf.shape),
      like=(leaf.shape, leaf.dtype, leaf.sharding),
      is_stack=path.startswith(STACKS),
    )
  return unflatten(params)


def _deviation(path: str, shape: tuple[int, ...]) -> float:
  """Returns a deviation with which activations neither vanish nor explode: kernels have variance 1 / fan-in."""
  if parameter_row(path).matrix is None:
    return DEVIATIONS[path.rpartition("/")[2]]
  _, inputs, _ = split_axes(path, shape)
  return math.prod(inputs) ** -0.5


@functools.partial(jax.jit, static_argnames=("like", "is_stack"))
def _draw(
  key: jax.Array,
  mean: float,
  deviation: float,
  *,
  like: tuple[tuple[int, ...], jnp.dtype, NamedSharding],
  is_stack: bool,
) -> jax.Array:
  shape, dtype, where = like

  def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return (mean + deviation * jax.random.normal(key, shape)).astype(dtype)

  if is_stack:
    drawn = jax.lax.map(lambda k: draw(k, shape[1:]), jax.random.split(key, shape[0]))
  else:
    drawn = draw(key, shape)
  return jax.lax.with_sharding_constraint(drawn, where)
