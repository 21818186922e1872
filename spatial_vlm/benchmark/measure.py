"""Compiling and timing: programs ahead of time, calls in alternating rounds."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from spatial_vlm.benchmark.row import Spread
from spatial_vlm.planning.flops import traced_flops


class Built(NamedTuple):
  """A compiled program and what compiling took."""

  call: Callable[..., Any]
  """Takes the arguments that are not static."""
  seconds: float
  """Time to trace, lower and compile."""
  peak_bytes: int


def build(trace: Callable[[], jax.stages.Traced]) -> Built:
  """Traces, lowers and compiles a program."""
  start = time.perf_counter()
  compiled = trace().lower().compile()
  seconds = time.perf_counter() - start
  stats = compiled.memory_analysis()
  return Built(compiled, seconds, _peak(stats) if stats else 0)


def _peak(stats: Any) -> int:
  sizes = (stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes)
  return sum(sizes) - stats.alias_size_in_bytes


def rebuild_seconds(trace: Callable[[], jax.stages.Traced]) -> float:
  """Returns the time to build a program again with the persistent compilation cache alone, as a later start does."""
  jax.clear_caches()
  return build(trace).seconds


def flops_of(traced: jax.stages.Traced, trip_count: int = 1) -> float:
  """Returns the operations of a traced program; attention counts by its formula, all pairs of a row.

  A kernel's own operations would depend on the platform, and cuDNN's cannot be read from a trace.
  """
  return traced_flops(traced.jaxpr.jaxpr, trip_count, platform="formula")


def seconds_of(call: Callable[[], Any]) -> float:
  """Returns the time of one call, until its result is there."""
  start = time.perf_counter()
  jax.block_until_ready(call())
  return time.perf_counter() - start


class Rounds(NamedTuple):
  """How often calls are timed."""

  count: int
  round_s: float
  """A call runs so often in one round that the round takes at least this long."""


def alternate(calls: Mapping[str, Callable[[], Any]], rounds: Rounds) -> dict[str, list[float]]:
  """Returns each call's seconds per run, one value a round; in a round every call has its turn.

  Other work on the machine then slows all of them. The first run of each call is not timed.
  """
  for call in calls.values():
    jax.block_until_ready(call())
  repeats = {
    name: max(1, math.ceil(rounds.round_s / seconds_of(call))) for name, call in calls.items()
  }
  times: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(rounds.count):
    for name, call in calls.items():
      start = time.perf_counter()
      for _ in range(repeats[name]):
        jax.block_until_ready(call())
      times[name].append((time.perf_counter() - start) / repeats[name])
  return times


def ratios(numerator: list[float], denominator: list[float]) -> Spread:
  """Returns the spread of the quotients of rounds."""
  return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
