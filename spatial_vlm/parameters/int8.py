"""Frozen kernels in int8: q = round(w / s), s = max |w| / 127 over the inputs of each output; the model reads s·q.

A quantized kernel stands in the tree as `kernel_int8`, of its own shape, and `kernel_scale`, whose axes of inputs have
size 1. The modules know nothing of it: `stack.bind`, where the parameters of a layer meet its module, makes the kernel.
So one layer's kernels exist at a time, inside what is rematerialised (by the policy "none" nothing is, and the kernels
of all layers are kept). Embeddings, biases and norms, and whatever trains, are not quantized.

Scales are float32 and have values that bfloat16 holds too. So s·q is exact in float32 and rounded once, to the type of
the computation; and since kernels are divided by the scale as it is rounded, |w − s·q| ≤ s / 2 all the same.
"""

from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8

from spatial_vlm.parameters.partition import Subset, flatten, trains, unflatten
from spatial_vlm.parameters.paths import as_matrix, matrix_axes
from spatial_vlm.types import Params

PARTS = ("kernel_int8", "kernel_scale")
LARGEST = 127
"""|q| of the largest weight; −128 is not used, so that w and −w are held alike."""


def row_scales(rows: Float[np.ndarray, "out in"]) -> Float[np.ndarray, "out 1"]:
  """s = max |w| / 127 of each row, rounded to bfloat16; of a row of zeros the smallest normal number."""
  most = np.max(np.abs(rows.astype(np.float32)), axis=1, keepdims=True)
  scales = np.maximum(most / LARGEST, np.finfo(np.float32).tiny)
  return scales.astype(ml_dtypes.bfloat16).astype(np.float32)


def quantized_rows(rows: Float[np.ndarray, "out in"]) -> Int8[np.ndarray, "out in"]:
  """q = round(w / s); s is rounded by 1 part of 256 at most, so |q| stays within 127."""
  return np.rint(rows.astype(np.float32) / row_scales(rows)).astype(np.int8)


def dequantized_kernel(q: Int8[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
  """s·q of a kernel, or of a stack of them, in the type of s."""
  return (q.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def dequantized(params: Params) -> Params:
  """The parameters with every kernel out of int8; as they are where none is in it."""
  if PARTS[0] in params:
    others = {name: leaf for name, leaf in params.items() if name not in PARTS}
    return others | {"kernel": dequantized_kernel(*(params[name] for name in PARTS))}
  return {name: dequantized(of) if isinstance(of, dict) else of for name, of in params.items()}


def quantizes(path: str, subset: Subset) -> bool:
  """Whether the parameter at `path` is a kernel that a run holds in int8."""
  is_kernel = matrix_axes(path) is not None
  return subset.frozen_int8 and is_kernel and not trains(path, subset.trainable)


def storage_shapes(shapes: Params, subset: Subset) -> Params:
  """Shapes of all parameters -> shapes and types as a run holds them: what trains in float32, the rest as told by
  `subset`."""
  result = {}
  for path, leaf in flatten(shapes).items():
    if quantizes(path, subset):
      leading, inputs, outputs = as_matrix(path, leaf.shape)
      q, scale = (path.removesuffix("kernel") + name for name in PARTS)
      result[q] = jax.ShapeDtypeStruct(leaf.shape, np.int8)
      result[scale] = jax.ShapeDtypeStruct((*leading, *(1 for _ in inputs), *outputs), np.float32)
    else:
      dtype = np.float32 if trains(path, subset.trainable) else subset.frozen_dtype
      result[path] = jax.ShapeDtypeStruct(leaf.shape, dtype)
  return unflatten(result)


def source_of(path: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """The parameter that the one at `path` is made of, and how: rows of its tensor [out, in] -> rows of the result."""
  owner, _, name = path.rpartition("/")
  made = dict(zip(PARTS, (quantized_rows, row_scales), strict=True))
  return (f"{owner}/kernel", made[name]) if name in made else (path, lambda rows: rows)
