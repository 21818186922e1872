"""Compares the implementations of attention on the device at hand: errors of values and gradients, and times.

python launch/check_attention.py [--tokens 2048] [--patches 4096] [--rows 2] [--dtype bfloat16] [--repeats 10]

Errors are the largest differences from the formula in float32 at full precision. A kernel fails (exit status 1) where
its error is more than three times that of the formula in the same dtype. Off TPUs splash attention runs only on CPUs,
interpreted: the times of that say nothing.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from spatial_vlm.model import flash
from spatial_vlm.model.attention import plain_attention

NAMES = ("mixed", "dq", "dk", "dv")


class Heads(NamedTuple):
  """Queries, keys and width of the heads of a tower of Qwen3-VL-8B."""

  queries: int
  keys: int
  width: int
  causal: bool


TEXT = Heads(queries=32, keys=8, width=128, causal=True)
VISION = Heads(queries=16, keys=16, width=72, causal=False)


def implementations(platform: str, dtype: jnp.dtype) -> dict[str, Callable]:
  """What can run here, by name; `attention` is what the model calls."""
  found: dict[str, Callable] = {"formula": plain_attention, "attention": flash.attention}
  if platform in ("tpu", "cpu"):
    found["splash"] = functools.partial(flash.splash_attention, interpret=platform == "cpu")
  if platform == "gpu" and dtype != jnp.float32:
    found["cudnn"] = flash.cudnn_attention
  return found


def inputs(heads: Heads, rows: int, tokens: int) -> tuple[list[jax.Array], jax.Array]:
  """q, k, v and a cotangent in float32, and segments: three sequences between padding, in every row others."""
  rng = np.random.default_rng(0)
  N, K, H, _ = heads
  by_token, by_head = (rows, tokens, N, H), (rows, K, tokens, H)
  arrays = [rng.standard_normal(shape) for shape in (by_token, by_head, by_head, by_token)]
  ends = np.sort(rng.integers(0, tokens, (rows, 4)), axis=1)
  number = np.sum(np.arange(tokens)[None, :, None] >= ends[:, None], axis=-1)
  return [jnp.asarray(x, jnp.float32) for x in arrays], jnp.asarray(number % 4, jnp.int32)


@functools.partial(jax.jit, static_argnames=("attend", "causal"))
def with_gradients(attend, q, k, v, cotangent, segments, causal):
  mixed, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, causal=causal), q, k, v)
  return mixed, *pull(cotangent)


def seconds(run: Callable, repeats: int) -> float:
  """Shortest of several runs; the first one compiles and does not count."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - start)
  return min(times)


def compare(
  name: str, heads: Heads, rows: int, tokens: int, dtype: jnp.dtype, repeats: int
) -> bool:
  """Prints a line for each implementation; whether all are near the formula."""
  arrays, segments = inputs(heads, rows, tokens)
  # rounded first, so that all see the same numbers
  rounded = [x.astype(dtype) for x in arrays]
  with jax.default_matmul_precision("highest"):
    exact = [x.astype(jnp.float32) for x in rounded]
    truth = jax.device_get(with_gradients(plain_attention, *exact, segments, causal=heads.causal))
  good, of_formula = True, None
  for kind, attend in implementations(jax.default_backend(), dtype).items():
    run = functools.partial(with_gradients, attend, *rounded, segments, causal=heads.causal)
    found = [np.asarray(x, np.float32) for x in run()]
    errors = np.array([np.abs(a - b).max() for a, b in zip(found, truth, strict=True)])
    of_formula = errors if of_formula is None else of_formula
    passed = bool((errors <= 3 * of_formula + 1e-5).all())  # NaN is not
    good &= passed
    figures = "  ".join(f"{error:9.2e}" for error in errors)
    ms = 1e3 * seconds(run, repeats)
    print(f"{name:7}{kind:11}{figures}  {ms:10.2f}  {'' if passed else 'FAILED'}".rstrip())
  return good


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tokens", type=int, default=2048)
  parser.add_argument("--patches", type=int, default=4096)
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
  parser.add_argument("--repeats", type=int, default=10)
  options = parser.parse_args(arguments)
  dtype = jnp.dtype(options.dtype)
  device = jax.devices()[0]
  print(f"{device.platform}, {device.device_kind}; jax {jax.__version__}; {options}")
  print(f"{'':7}{'':11}" + "  ".join(f"{name:>9}" for name in NAMES) + f"  {'ms':>10}")
  results = [
    compare("text", TEXT, options.rows, options.tokens, dtype, options.repeats),
    compare("vision", VISION, options.rows, options.patches, dtype, options.repeats),
  ]
  return 0 if all(results) else 1


if __name__ == "__main__":
  sys.exit(main())
