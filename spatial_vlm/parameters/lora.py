"""LoRA: low-rank factors next to frozen kernels, W' = W + α/r · A·B   (arXiv 2106.09685, Eq. 3).

The factors of a kernel are its siblings in the tree: `lora_a` […, in, r], `lora_b` […, r, out] and the constant
`lora_scale` […] = α/r. Here "in" and "out" are the kernel's own axes (heads and their width are two), and … is the
layer axis of a stack. The modules do not know the factors: `stack.bind` calls `effective_kernels` when it binds a
layer's parameters to its module. So only one layer's W' exists at a time, inside the rematerialized function; W' of all
layers would be another copy of the model. The price: the backward pass computes the gradient of W' (of one layer) on
its way to those of A and B. Training, sampling and the exported weights use the same W', rounded once to the type of W.
If W is stored in int8 (`parameters.int8`), it is dequantized first.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from spatial_vlm.parameters.int8 import dequantize, is_quantized
from spatial_vlm.parameters.partition import (
  Subset,
  combine,
  flatten,
  matches,
  partition,
  trains,
  unflatten,
)
from spatial_vlm.parameters.paths import (
  ADAPTER,
  INT8,
  LORA_FACTORS,
  parameter_row,
  sibling,
  split_axes,
)
from spatial_vlm.types import Params


def target_kernels(shapes: Params, subset: Subset) -> list[str]:
  """Returns the paths of the kernels that get LoRA factors.

  Raises:
    ValueError: a target matches nothing, or a parameter that is not a kernel; or a kernel would train along with its
      factors, or one of the factors would not train.
  """
  if not subset.rank:
    return []
  paths = flatten(shapes)
  for pattern in subset.targets or ("",):
    found = [path for path in paths if matches(path, [pattern])]
    wrong = [path for path in found if parameter_row(path).matrix is None]
    if wrong or not found:
      raise ValueError(
        f"lora.targets names {pattern!r}, which matches {wrong[0] if wrong else 'no parameter'}; only kernels can have "
        "LoRA factors, e.g. 'text/layers/(attention|mlp)/.*_proj/kernel'"
      )
  targets = [path for path in sorted(paths) if matches(path, subset.targets)]
  for path in targets:
    factors_train = [trains(sibling(path, name), subset.trainable) for name in LORA_FACTORS]
    if trains(path, subset.trainable) or not all(factors_train):
      raise ValueError(
        f"lora.rank is {subset.rank}, so the LoRA factors of {path} must train and the kernel itself must not; "
        f"trainable is {subset.trainable}. trainable=('.*/lora_[ab]',) trains the factors alone"
      )
  return targets


def new_adapters(shapes: Params, subset: Subset, key: PRNGKeyArray) -> Params:
  """Returns fresh LoRA factors of all targets: A uniform within ±1/√in (as in PEFT), B zero, so that W' = W.

  Raises:
    ValueError: as `target_kernels`.
  """
  kernels, adapters = flatten(shapes), {}
  for path in target_kernels(shapes, subset):
    leading, inputs, outputs = split_axes(path, kernels[path].shape)
    bound = math.prod(inputs) ** -0.5
    own = jax.random.fold_in(key, jnp.uint32(zlib.crc32(path.encode())))
    shape = (*leading, *inputs, subset.rank)
    a, b, scale = (sibling(path, name) for name in ADAPTER)
    adapters[a] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
    adapters[b] = jnp.zeros((*leading, subset.rank, *outputs))
    adapters[scale] = jnp.full(leading, subset.alpha / subset.rank)
  return unflatten(adapters)


def is_adapter(path: str) -> bool:
  """Returns whether the parameter at `path` is a LoRA factor."""
  return path.rpartition("/")[2] in LORA_FACTORS


def delta_kernel(
  a: Float[Array, "*in r"], b: Float[Array, "r *out"], scale: Float[Array, ""]
) -> Float[Array, "..."]:
  """Returns α/r · A·B, in float32."""
  return scale * jnp.tensordot(a, b, axes=1, preferred_element_type=jnp.float32)


def merge_kernel(
  kernel: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."], scale: Array
) -> Float[Array, "..."]:
  """Returns W' of one kernel, or of a stack (then `scale` has a layer axis), in the type of W."""
  delta = (jax.vmap(delta_kernel) if scale.ndim else delta_kernel)(a, b, scale)
  return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def merge_adapters(params: Params) -> Params:
  """Returns the parameters with all LoRA factors merged into their kernels.

  Factors of int8 kernels stay; so do all other leaves.
  """
  if ADAPTER[0] in params and "kernel" in params:
    others = {name: leaf for name, leaf in params.items() if name not in (*ADAPTER, "kernel")}
    return others | {"kernel": merge_kernel(params["kernel"], *(params[name] for name in ADAPTER))}
  return {
    name: merge_adapters(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()
  }


def effective_kernels(params: Params) -> Params:
  """Returns the parameters as modules read them: int8 kernels dequantized, LoRA factors merged."""
  return merge_adapters(dequantize(params))


def read_with_parts(leaf_at: Callable[[str], Array], subset: Subset, path: str) -> Array | Params:
  """Returns the parameter at `path`, or a dict of the leaves from which `effective_kernels` makes it.

  Args:
    leaf_at: returns the leaf at a path; it is called for one leaf after the other.
  """
  is_target = subset.rank > 0 and matches(path, subset.targets)
  quantized = is_quantized(path, subset)
  if not is_target and not quantized:
    return leaf_at(path)
  names = INT8 if quantized else ("kernel",)
  parts: Params = {name: leaf_at(sibling(path, name)) for name in names}
  if is_target:
    parts |= {name: leaf_at(sibling(path, name)) for name in LORA_FACTORS}
    leading, _, _ = split_axes(path, parts[names[0]].shape)
    parts["lora_scale"] = np.full(leading, subset.alpha / subset.rank, np.float32)
  return parts


def partition_shapes(shapes: Params, subset: Subset) -> tuple[Params, Params]:
  """Returns the shapes of the parameters that train, LoRA factors included, and of the frozen ones.

  Raises:
    ValueError: the patterns do not fit the model.
  """
  kernels = jax.eval_shape(dequantize, shapes)
  adapters = jax.eval_shape(lambda: new_adapters(kernels, subset, jax.random.key(0)))
  return partition(combine(shapes, adapters), subset.trainable)
