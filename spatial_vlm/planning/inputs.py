"""Shapes of a program's inputs, sharded as the input pipeline shards them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from spatial_vlm import sharding
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.processor.chat import Size
from spatial_vlm.types import Batch, Prompts, Vision


def batch_shapes(mesh: Mesh, model: ModelConfig, rows: int, size: Size, dtype: str) -> Batch:
  """Returns a `Batch` of `jax.ShapeDtypeStruct`s with its rows sharded over the mesh, and patches of a type."""
  tokens = (rows, size.tokens)
  batch = Batch(
    tokens=_ints(*tokens),
    segments=_ints(*tokens),
    targets=abstract_array(tokens, jnp.bool_),
    positions=_ints(*tokens, 3),
    vision=_vision(model, rows, size.patches, dtype),
  )
  return sharding.with_row_shardings(mesh, batch)


def prompt_shapes(mesh: Mesh, model: ModelConfig, rows: int, size: Size, dtype: str) -> Prompts:
  """Returns `Prompts` of `jax.ShapeDtypeStruct`s with their rows sharded over the mesh, and patches of a type."""
  tokens = (rows, size.tokens)
  prompts = Prompts(
    ids=_ints(rows),
    tokens=_ints(*tokens),
    segments=_ints(*tokens),
    positions=_ints(*tokens, 3),
    vision=_vision(model, rows, size.patches, dtype),
    label=_ints(rows),
  )
  return sharding.with_row_shardings(mesh, prompts)


def _vision(model: ModelConfig, rows: int, patches: int, dtype: str) -> Vision | None:
  if not patches:
    return None
  return Vision(
    patches=abstract_array((rows, patches, model.vision.patch_dim), jnp.dtype(dtype)),
    segments=_ints(rows, patches),
    coords=_ints(rows, patches, 2),
    pos_index=_ints(rows, patches, 4),
    pos_weight=abstract_array((rows, patches, 4), jnp.float32),
  )


def _ints(*shape: int) -> Any:
  return abstract_array(shape, jnp.int32)


def abstract_array(
  shape: tuple[int, ...], dtype: DTypeLike, sharding: NamedSharding | None = None
) -> Any:
  """Returns a `jax.ShapeDtypeStruct`; typed as Any because it stands in for an array of a pytree."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
