"""Frozen kernels in int8: q = round(w / s), s = max |w| / 127 over the inputs of each output; the model reads s·q.

A quantized kernel is two leaves of the tree: `kernel_int8`, of the kernel's shape, and `kernel_scale`, whose input axes
have size 1. The modules do not know them: `stack.bind` makes the kernel when it binds a layer's parameters to its
module. So only one layer's kernels exist at a time, inside the rematerialized function (with the policy "none" the
kernels of all layers are kept). Embeddings, biases, norms and parameters that train are not quantized.

Scales are float32 and have values that bfloat16 can represent. So s·q is exact in float32 and is rounded once, to the
type of the computation. Kernels are divided by the rounded scale, so that |w − s·q| ≤ s / 2 still holds.
"""

from collections.abc import Callable

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int8

from spatial_vlm.parameters.partition import Subset, flatten, trains, unflatten
from spatial_vlm.parameters.paths import INT8, parameter_row, sibling, split_axes
from spatial_vlm.types import Params

LARGEST = 127
"""|q| of the largest weight; −128 is not used, so that w and −w quantize to the same magnitude."""


def row_scales(rows: Float[np.ndarray, "out in"]) -> Float[np.ndarray, "out 1"]:
  """Returns s = max |w| / 127 of each row, rounded to bfloat16; the smallest normal number for a row of zeros."""
  most = np.max(np.abs(rows.astype(np.float32)), axis=1, keepdims=True)
  scales = np.maximum(most / LARGEST, np.finfo(np.float32).tiny)
  return scales.astype(ml_dtypes.bfloat16).astype(np.float32)


def quantize_rows(rows: Float[np.ndarray, "out in"]) -> Int8[np.ndarray, "out in"]:
  """Returns q = round(w / s); rounding moves s by at most 1 part in 256, so |q| stays within 127."""
  return np.rint(rows.astype(np.float32) / row_scales(rows)).astype(np.int8)


def dequantize_kernel(q: Int8[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
  """Returns s·q of a kernel, or of a stack of kernels, in the type of s."""
  return (q.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def dequantize(params: Params) -> Params:
  """Returns the parameters with every int8 kernel dequantized; other leaves stay as they are."""
  if INT8[0] in params:
    others = {name: leaf for name, leaf in params.items() if name not in INT8}
    return others | {"kernel": dequantize_kernel(*(params[name] for name in INT8))}
  return {
    name: dequantize(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()
  }


def is_quantized(path: str, subset: Subset) -> bool:
  """Returns whether a run stores the parameter at `path` in int8: a kernel that does not train."""
  is_kernel = parameter_row(path).matrix is not None
  return subset.frozen_int8 and is_kernel and not trains(path, subset.trainable)


def storage_shapes(shapes: Params, subset: Subset) -> Params:
  """Returns the shapes and types in which a run stores parameters of these shapes.

  Parameters that train are float32; frozen ones have `subset.frozen_dtype`, or are int8 with float32 scales.
  """
  result = {}
  for path, leaf in flatten(shapes).items():
    if is_quantized(path, subset):
      leading, inputs, outputs = split_axes(path, leaf.shape)
      q, scale = (sibling(path, name) for name in INT8)
      result[q] = jax.ShapeDtypeStruct(leaf.shape, np.int8)
      result[scale] = jax.ShapeDtypeStruct((*leading, *(1 for _ in inputs), *outputs), np.float32)
    else:
      dtype = np.float32 if trains(path, subset.trainable) else subset.frozen_dtype
      result[path] = jax.ShapeDtypeStruct(leaf.shape, dtype)
  return unflatten(result)


def source_and_conversion(path: str) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
  """Returns the parameter that checkpoint files hold for the one at `path`, and how to convert its rows.

  The conversion maps rows [out, in] of the file's tensor to rows of the parameter.
  """
  conversions = dict(zip(INT8, (quantize_rows, row_scales), strict=True))
  name = path.rpartition("/")[2]
  if name in conversions:
    return sibling(path, "kernel"), conversions[name]
  return path, lambda rows: rows
