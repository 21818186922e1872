"""Compares the implementations of attention on this device: errors of outputs and gradients, and times.

python launch/check_attention.py [--tokens 2048] [--patches 4096] [--rows 2] [--dtype bfloat16] [--repeats 10]

An error is the largest absolute difference from the formula in float32 at full precision. A kernel fails (exit status
1) if its error exceeds three times that of the formula in the same dtype. Without a TPU, splash attention runs only on
CPUs and is interpreted, so its times mean nothing there.
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

OUTPUTS = ("output", "dq", "dk", "dv")


class Heads(NamedTuple):
  """Query heads, key-value heads and head width of a tower of Qwen3-VL-8B."""

  queries: int
  keys: int
  width: int
  causal: bool


TEXT = Heads(queries=32, keys=8, width=128, causal=True)
VISION = Heads(queries=16, keys=16, width=72, causal=False)


def implementations(platform: str, dtype: jnp.dtype) -> dict[str, Callable]:
  """Returns name → implementation that runs on the platform; the model calls `attention`."""
  found: dict[str, Callable] = {"formula": plain_attention, "attention": flash.attention}
  if platform in ("tpu", "cpu"):
    found["splash"] = functools.partial(flash.splash_attention, interpret=platform == "cpu")
  if platform == "gpu" and dtype != jnp.float32:
    found["cudnn"] = flash.cudnn_attention
  return found


def inputs(heads: Heads, rows: int, tokens: int) -> tuple[list[jax.Array], jax.Array]:
  """Returns q, k, v and a cotangent in float32, and segments.

  Each row has three sequences of its own lengths, with padding before and after.
  """
  rng = np.random.default_rng(0)
  N, K, H, _ = heads
  by_token, by_head = (rows, tokens, N, H), (rows, K, tokens, H)
  arrays = [rng.standard_normal(shape) for shape in (by_token, by_head, by_head, by_token)]
  ends = np.sort(rng.integers(0, tokens, (rows, 4)), axis=1)
  number = np.sum(np.arange(tokens)[None, :, None] >= ends[:, None], axis=-1)
  return [jnp.asarray(x, jnp.float32) for x in arrays], jnp.asarray(number % 4, jnp.int32)


@functools.partial(jax.jit, static_argnames=("attend", "causal"))
def with_gradients(attend, q, k, v, cotangent, segments, causal):
  """Returns the output and the gradients of q, k and v for a cotangent of the output."""
  output, pull = jax.vjp(lambda q, k, v: attend(q, k, v, segments, causal=causal), q, k, v)
  return output, *pull(cotangent)


def seconds(run: Callable, repeats: int) -> float:
  """Returns the shortest time of several runs, after one that compiles."""
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
  """Prints a line per implementation; returns whether all are close to the formula."""
  arrays, segments = inputs(heads, rows, tokens)
  # Inputs are rounded first, so that all implementations get the same numbers.
  rounded = [x.astype(dtype) for x in arrays]
  with jax.default_matmul_precision("highest"):
    exact = [x.astype(jnp.float32) for x in rounded]
    reference = jax.device_get(
      with_gradients(plain_attention, *exact, segments, causal=heads.causal)
    )
  all_passed, formula_errors = True, None
  for kind, attend in implementations(jax.default_backend(), dtype).items():
    run = functools.partial(with_gradients, attend, *rounded, segments, causal=heads.causal)
    found = [np.asarray(x, np.float32) for x in run()]
    errors = np.array([np.abs(a - b).max() for a, b in zip(found, reference, strict=True)])
    formula_errors = errors if formula_errors is None else formula_errors
    passed = bool((errors <= 3 * formula_errors + 1e-5).all())  # False for NaN
    all_passed &= passed
    figures = "  ".join(f"{error:9.2e}" for error in errors)
    ms = 1e3 * seconds(run, repeats)
    print(f"{name:7}{kind:11}{figures}  {ms:10.2f}  {'' if passed else 'FAILED'}".rstrip())
  return all_passed


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
  print(f"{'':7}{'':11}" + "  ".join(f"{name:>9}" for name in OUTPUTS) + f"  {'ms':>10}")
  results = [
    compare("text", TEXT, options.rows, options.tokens, dtype, options.repeats),
    compare("vision", VISION, options.rows, options.patches, dtype, options.repeats),
  ]
  return 0 if all(results) else 1


if __name__ == "__main__":
  sys.exit(main())
