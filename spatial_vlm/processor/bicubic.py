"""Bicubic resizing of bytes with antialiasing, as PyTorch computes it on CPUs; the reference resizes videos this way.

Reference: PyTorch 2.13, `interpolate(mode="bicubic", antialias=True)` of uint8 on a CPU: Pillow's two passes, but with
weights of 16 bits. Pillow itself has finer weights and differs by 1 or 2 of 255 (by more if it takes the axes in the
other order). In floating point, as on GPUs, PyTorch clips only once, at the end, and differs by up to 25.
"""

import functools
import math

import numpy as np
from jaxtyping import Float, UInt8
from scipy import sparse

_SUPPORT = 2.0
"""Half of the kernel's width, in pixels of the coarser grid."""
_WEIGHT_BITS = 15
_MOST_FRACTION_BITS = 22


def resize(
  pixels: UInt8[np.ndarray, "H W C"], height: int, width: int
) -> UInt8[np.ndarray, "h w C"]:
  """Resizes along the width first, rounded to bytes, then along the height."""
  columns_first = _resize_first_axis(pixels.swapaxes(0, 1), width)
  return _resize_first_axis(columns_first.swapaxes(0, 1), height)


def keys_kernel(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
  """Returns the cubic convolution kernel with a = −1/2 (Keys 1981, equation 15)."""
  a, x = -0.5, np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < _SUPPORT, far, 0.0))


def _resize_first_axis(pixels: UInt8[np.ndarray, "..."], size: int) -> UInt8[np.ndarray, "..."]:
  if len(pixels) == size:
    return pixels
  weights, bits = _weights(len(pixels), size)
  sums = weights @ pixels.reshape(len(pixels), -1).astype(np.int32)
  rounded = (sums + (1 << (bits - 1))) >> bits
  return np.clip(rounded, 0, 255).astype(np.uint8).reshape(size, *pixels.shape[1:])


@functools.lru_cache(maxsize=64)
def _weights(before: int, after: int) -> tuple[sparse.csr_array, int]:
  """Returns weights [after, before] as whole numbers, and the number of their fraction bits."""
  scale = before / after
  stretch = max(scale, 1.0)  # a coarser grid widens the kernel: this is the antialiasing
  support = _SUPPORT * stretch
  centre = scale * (np.arange(after) + 0.5)
  first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
  end = np.minimum((centre + support + 0.5).astype(np.int64), before)
  source = first[:, None] + np.arange(2 * math.ceil(support) + 1)
  inside = source < end[:, None]
  weights = np.where(inside, keys_kernel((source - centre[:, None] + 0.5) * (1 / stretch)), 0.0)
  weights /= np.cumsum(weights, axis=1)[:, -1:]  # a sequential sum, not a pairwise one
  bits = _fraction_bits(float(weights.max()))
  whole = np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32)
  rows = np.broadcast_to(np.arange(after)[:, None], source.shape)
  matrix = (whole[inside], (rows[inside], source[inside]))
  return sparse.csr_array(matrix, shape=(after, before)), bits


def _fraction_bits(largest: float) -> int:
  """Returns the largest number of fraction bits that keeps the largest weight within 16 bits, sign included."""
  bits = 0
  while bits < _MOST_FRACTION_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << _WEIGHT_BITS:
    bits += 1
  return bits
