"""Modules as pure functions: an NNX block defines parameters and computation, a plain dict carries the arrays.

A stack of equal blocks is one dict whose arrays have a leading layer axis; it runs under `jax.lax.scan`, whose
body merges the block's definition with one layer's slice. Host cost and compile time then do not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array

from spatial_vlm.model.lora import effective
from spatial_vlm.types import Params

Block = Callable[..., nnx.Module]
"""An NNX class made by `block(config, rngs=…, param_dtype=…)`."""

REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of each layer: all; its input only; products with weights."""


def init_block(block: Block, config, key: Array, dtype: jnp.dtype) -> Params:
  """Random parameters of a block as a nested dict."""
  return nnx.to_pure_dict(
    nnx.state(block(config, rngs=nnx.Rngs(key), param_dtype=dtype), nnx.Param)
  )


def init_stack(block: Block, config, layers: int, key: Array, dtype: jnp.dtype) -> Params:
  """Random parameters of `layers` equal blocks, stacked on a leading axis."""
  return jax.vmap(lambda key: init_block(block, config, key, dtype))(jax.random.split(key, layers))


def bind(block: Block, config, params: Params) -> Any:
  """The block with these parameters: `bind(TextLayer, config, layer)(h, …)`. Kernels are made of what holds
  them: int8 and scales, low-rank pairs."""
  return nnx.merge(_definition(block, config), effective(params))


@functools.cache
def _definition(block: Block, config) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: block(config, rngs=nnx.Rngs(0))))[0]


def rematerialized(function: Callable, policy: str) -> Callable:
  """`function` whose backward pass recomputes what `policy` does not keep.

  Raises:
    ValueError: `policy` is not one of REMAT_POLICIES.
  """
  if policy not in REMAT_POLICIES:
    raise ValueError(f"remat is {policy!r}; choose one of {', '.join(map(repr, REMAT_POLICIES))}.")
  if policy == "none":
    return function
  # inside a scan nothing can be merged across the barrier that prevent_cse would put up
  return jax.checkpoint(function, policy=REMAT_POLICIES[policy], prevent_cse=False)
