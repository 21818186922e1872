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
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from spatial_vlm.parameters.lora import effective
from spatial_vlm.types import Params

Block = Callable[..., nnx.Module]
"""An NNX class made by `block(config, rngs=…, param_dtype=…)`."""

LAYER_INPUT, QUERIES, KEYS, VALUES, CONTEXT = "layer_input", "queries", "keys", "values", "context"
"""Names by which policies know arrays of a layer: what the layer reads, the products with the three weights of
attention, and what attention makes of them."""

_POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
  "offload": _POLICIES.save_and_offload_only_these_names(
    names_which_can_be_saved=(),
    names_which_can_be_offloaded=(LAYER_INPUT,),
    offload_src="device",
    offload_dst="pinned_host",
  ),
  "full": _POLICIES.nothing_saveable,
  "context": _POLICIES.save_only_these_names(CONTEXT),
  "attention": _POLICIES.save_only_these_names(QUERIES, KEYS, VALUES, CONTEXT),
  "dots": _POLICIES.save_from_both_policies(
    _POLICIES.dots_with_no_batch_dims_saveable, _POLICIES.save_only_these_names(CONTEXT)
  ),
  "none": _POLICIES.everything_saveable,
}
"""What the backward pass finds of each layer; it computes the rest again. From the least memory to the most:

  offload     the layer's input, in the memory of the host
  full        the layer's input
  context     and what attention makes of it: the kernel (with splash attention) does not run again
  attention   and its queries, keys and values
  dots        and all other products with weights
  none        everything
"""


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
  """`function` of (params, input), whose backward pass recomputes what `policy` does not keep.

  Raises:
    ValueError: `policy` is not one of REMAT_POLICIES.
  """
  if policy not in REMAT_POLICIES:
    raise ValueError(f"remat is {policy!r}; choose one of {', '.join(map(repr, REMAT_POLICIES))}.")
  if policy == "none":
    return function

  def layer(params, h):
    return function(params, checkpoint_name(h, LAYER_INPUT))

  # inside a scan nothing can be merged across the barrier that prevent_cse would put up
  return jax.checkpoint(layer, policy=REMAT_POLICIES[policy], prevent_cse=False)
