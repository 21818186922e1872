"""Low-rank pairs beside frozen kernels: W' = W + α/r · A·B   (LoRA, arXiv 2106.09685, Eq. 3).

A pair stands in the tree beside its kernel, as `lora_a` […, in, r], `lora_b` […, r, out] and the constant
`lora_scale` […] = α/r, where in and out are the kernel's own axes (heads and their width are two) and … is the layer
axis of a stack. The modules know nothing of it: `stack.bind`, where the parameters of a layer meet its module, calls
`effective`. So one layer's W' exists at a time, inside what is rematerialised: W' of all layers would be another copy
of the model. The price is that the backward pass makes the gradient of W' (one layer's) on its way to those of A and B.
Training, sampling and the exported weights see the same W', rounded once to the type of W. Where W is held in int8
(`parameters.int8`), it is what its int8 and scales multiply to.
"""

import math
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from spatial_vlm.parameters.int8 import PARTS, dequantized, quantizes
from spatial_vlm.parameters.partition import (
  Subset,
  combine,
  fits,
  flatten,
  partition,
  trains,
  unflatten,
)
from spatial_vlm.parameters.paths import as_matrix, matrix_axes
from spatial_vlm.types import Params

PAIR = ("lora_a", "lora_b", "lora_scale")


def target_kernels(shapes: Params, subset: Subset) -> list[str]:
  """Paths of the kernels that get a pair.

  Raises ValueError for a target that fits no kernel, or something else; where a kernel would train beside its pair,
  or one half of the pair would not.
  """
  if not subset.rank:
    return []
  paths = flatten(shapes)
  for pattern in subset.targets or ("",):
    found = [path for path in paths if fits(path, [pattern])]
    wrong = [path for path in found if not matrix_axes(path)]
    if wrong or not found:
      raise ValueError(
        f"lora.targets names {pattern!r}, which fits {wrong[0] if wrong else 'no parameter'}; only kernels can have "
        "pairs, e.g. 'text/layers/(attention|mlp)/.*_proj/kernel'"
      )
  targets = [path for path in sorted(paths) if fits(path, subset.targets)]
  for path in targets:
    halves = [trains(beside(path, half), subset.trainable) for half in ("lora_a", "lora_b")]
    if trains(path, subset.trainable) or not all(halves):
      raise ValueError(
        f"lora.rank is {subset.rank}, so of {path} its pair has to train and the kernel itself must not; trainable is "
        f"{subset.trainable}. The pairs alone are trainable=('.*/lora_[ab]',)"
      )
  return targets


def beside(kernel: str, name: str) -> str:
  """Path of what stands beside a kernel."""
  return kernel.removesuffix("kernel") + name


def new_adapters(shapes: Params, subset: Subset, key: PRNGKeyArray) -> Params:
  """Pairs of all targets: A uniform within ±1/√in (as PEFT draws it), B zero, so that W' = W. Raises as
  `target_kernels` does."""
  kernels, pairs = flatten(shapes), {}
  for path in target_kernels(shapes, subset):
    leading, inputs, outputs = as_matrix(path, kernels[path].shape)
    bound = math.prod(inputs) ** -0.5
    own = jax.random.fold_in(key, jnp.uint32(zlib.crc32(path.encode())))
    shape = (*leading, *inputs, subset.rank)
    pairs[beside(path, "lora_a")] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
    pairs[beside(path, "lora_b")] = jnp.zeros((*leading, subset.rank, *outputs))
    pairs[beside(path, "lora_scale")] = jnp.full(leading, subset.alpha / subset.rank)
  return unflatten(pairs)


def low_rank(
  a: Float[Array, "*in r"], b: Float[Array, "r *out"], scale: Float[Array, ""]
) -> Float[Array, "..."]:
  """α/r · A·B, in float32."""
  return scale * jnp.tensordot(a, b, axes=1, preferred_element_type=jnp.float32)


def merged_kernel(
  kernel: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."], scale: Array
) -> Float[Array, "..."]:
  """W' of one kernel, or of a stack of them (then `scale` has a layer axis), in the type of W."""
  product = (jax.vmap(low_rank) if scale.ndim else low_rank)(a, b, scale)
  return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)


def merged(params: Params) -> Params:
  """The parameters with every pair added to its kernel and taken out; as they are where there are none. Pairs beside
  kernels in int8 stay."""
  if "lora_a" in params and "kernel" in params:
    others = {name: leaf for name, leaf in params.items() if name not in (*PAIR, "kernel")}
    return others | {"kernel": merged_kernel(params["kernel"], *(params[name] for name in PAIR))}
  return {name: merged(of) if isinstance(of, dict) else of for name, of in params.items()}


def effective(params: Params) -> Params:
  """The parameters as modules read them: kernels out of int8, pairs added to them."""
  return merged(dequantized(params))


def unmerged(params: Params, pairs: Params) -> Params:
  """Undoes `merged`, up to rounding: the pairs' products are taken off the kernels, and the pairs put back."""
  negative = {
    path: -leaf if path.endswith("/lora_scale") else leaf for path, leaf in flatten(pairs).items()
  }
  return combine(merged(combine(params, unflatten(negative))), pairs)


def parts_at(leaf_at: Callable[[str], Array], subset: Subset, path: str) -> Array | Params:
  """The parameter at `path`, or, where `effective` makes it of several, a dict of them; from leaves that are made one
  after the other by `leaf_at`."""
  is_target = subset.rank > 0 and fits(path, subset.targets)
  if not is_target and not quantizes(path, subset):
    return leaf_at(path)
  names = PARTS if quantizes(path, subset) else ("kernel",)
  parts = {name: leaf_at(beside(path, name)) for name in names}
  if is_target:
    parts |= {half: leaf_at(beside(path, half)) for half in ("lora_a", "lora_b")}
    leading, _, _ = as_matrix(path, parts[names[0]].shape)
    parts["lora_scale"] = np.full(leading, subset.alpha / subset.rank, np.float32)
  return parts


def partition_shapes(shapes: Params, subset: Subset) -> tuple[Params, Params]:
  """Shapes of what trains, pairs included, and of what is frozen. Raises ValueError for patterns that do not fit."""
  kernels = jax.eval_shape(dequantized, shapes)
  pairs = jax.eval_shape(lambda: new_adapters(kernels, subset, jax.random.key(0)))
  return partition(combine(shapes, pairs), subset.trainable)
