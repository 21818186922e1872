"""The limits of this machine, measured: the rate of matrix products and the bandwidth of memory."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spatial_vlm.benchmark.measure import seconds_of

REPEATS = 7


class Sizes(NamedTuple):
  """Sizes with which limits are measured."""

  widths: tuple[int, ...]
  """Of square matrices."""
  bytes: int
  """Of an array that no cache holds."""


SIZES = {"cpu": Sizes((1024, 2048), 2**29)}
ACCELERATOR = Sizes((4096, 8192), 2**31)


class Limits(NamedTuple):
  """Best rates over all sizes and repeats."""

  flops_per_s: float
  bytes_per_s: float

  def seconds(self, flops: float, bytes: float) -> float:
    """Returns the least time for so much arithmetic and traffic if they overlap."""
    return max(flops / self.flops_per_s, bytes / self.bytes_per_s)


def measure_limits(dtype: str) -> Limits:
  """Measures with random data of this type; takes seconds."""
  sizes = SIZES.get(jax.default_backend(), ACCELERATOR)
  return Limits(
    flops_per_s=max(_product_rate(width, dtype) for width in sizes.widths),
    bytes_per_s=max(_bandwidths(sizes.bytes, dtype)),
  )


def _product_rate(width: int, dtype: str) -> float:
  keys = jax.random.split(jax.random.key(0), 2)
  a, b = (jax.random.normal(key, (width, width), dtype) for key in keys)
  return 2 * width**3 / _fastest(jnp.matmul, a, b)


def _bandwidths(size: int, dtype: str) -> list[float]:
  """Returns the bandwidth of a copy (reads and writes), of a sum, and of a product with a vector (reads)."""
  count = size // jnp.dtype(dtype).itemsize
  x = jax.random.normal(jax.random.key(0), (2**12, count // 2**12), dtype)
  vector = x[0]
  return [
    2 * x.nbytes / _fastest(jnp.negative, x),
    x.nbytes / _fastest(functools.partial(jnp.sum, axis=1, dtype=jnp.float32), x),
    x.nbytes / _fastest(jnp.matmul, x, vector),
  ]


def _fastest(function, *arguments: jax.Array) -> float:
  run = functools.partial(jax.jit(function), *arguments)
  jax.block_until_ready(run())
  return min(seconds_of(run) for _ in range(REPEATS))
