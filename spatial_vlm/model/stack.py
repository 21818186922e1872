"""NNX modules as pure functions of a nested dict of arrays.

A stack of equal blocks is one dict whose arrays have a leading layer axis. It runs under `jax.lax.scan`, whose body
binds one layer's slice to the block's definition, so that host cost and compile time do not grow with depth.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from spatial_vlm.parameters.lora import effective_kernels
from spatial_vlm.types import Params

Block = Callable[..., nnx.Module]
"""An NNX class made by `block(config, rngs=…, param_dtype=…)`."""

LAYER_INPUT, QUERIES, KEYS, VALUES, CONTEXT = "layer_input", "queries", "keys", "values", "context"
"""Names of a layer's arrays in the policies: its input, queries, keys, values, and the output of attention."""

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
"""Policy -> what the forward pass saves of each layer; the backward pass recomputes the rest. Ordered by memory:

  offload     the layer's input, in host memory
  full        the layer's input
  context     also the output of attention, so that the kernel (splash attention) does not run again
  attention   also queries, keys and values
  dots        also all other products with weights
  none        everything
"""


def init_block(block: Block, config, key: Array, dtype: jnp.dtype) -> Params:
  """Returns random parameters of a block as a nested dict."""
  return nnx.to_pure_dict(
    nnx.state(block(config, rngs=nnx.Rngs(key), param_dtype=dtype), nnx.Param)
  )


def init_stack(block: Block, config, layers: int, key: Array, dtype: jnp.dtype) -> Params:
  """Returns random parameters of `layers` equal blocks, stacked on a leading axis."""
  return jax.vmap(lambda key: init_block(block, config, key, dtype))(jax.random.split(key, layers))


def bind(block: Block, config, params: Params) -> Any:
  """Returns the block with these parameters: `bind(TextLayer, config, layer)(h, …)`.

  Kernels in int8 are dequantized and LoRA factors merged here.
  """
  return nnx.merge(_definition(block, config), effective_kernels(params))


@functools.cache
def _definition(block: Block, config) -> nnx.GraphDef:
  return nnx.split(nnx.eval_shape(lambda: block(config, rngs=nnx.Rngs(0))))[0]


def rematerialize(function: Callable, policy: str) -> Callable:
  """Returns `function` of (params, input) with a backward pass that recomputes what `policy` does not save.

  Raises:
    ValueError: `policy` is not in REMAT_POLICIES.
  """
  if policy not in REMAT_POLICIES:
    raise ValueError(f"remat is {policy!r}; choose one of {', '.join(map(repr, REMAT_POLICIES))}.")
  if policy == "none":
    return function

  def layer(params, h):
    return function(params, checkpoint_name(h, LAYER_INPUT))

  # Inside a scan, XLA cannot merge the recomputation with the forward pass, so prevent_cse is not needed.
  return jax.checkpoint(layer, policy=REMAT_POLICIES[policy], prevent_cse=False)
