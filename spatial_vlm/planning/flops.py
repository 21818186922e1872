"""Floating-point operations of a program, counted in its traced form.

The traced form shows recomputation in the backward pass and the trip count of every `scan`. (XLA's own figure counts
the body of a loop once.)
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def traced_flops(jaxpr: core.Jaxpr, trip_count: int = 1, platform: str = "tpu") -> float:
  """Returns the operations of all matrix products, 2 per multiplication, over all devices.

  Args:
    jaxpr: the traced program.
    trip_count: how often each `while` runs; its end depends on data (the tokens of an answer).
    platform: of branches for several platforms, this one counts (its kernels' padding included); of other branches,
      the one with the most operations.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _product_flops(equation)
    elif equation.primitive.name == "cond":
      branches = _branches(equation, platform)
      total += max(traced_flops(branch.jaxpr, trip_count, platform) for branch in branches)
    else:
      repeats = _repeats(equation, trip_count)
      inside = sum(traced_flops(inner, trip_count, platform) for inner in _inner(equation))
      total += repeats * inside
  return total


def _product_flops(equation: Any) -> float:
  """Returns 2 · size of the result · length of the contracted dimensions."""
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _repeats(equation: Any, trip_count: int) -> float:
  """Returns how often the jaxprs inside an equation run."""
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return params["length"]
  if name == "while":
    return trip_count
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  if name == "shard_map":  # its body runs once per device
    return params["mesh"].size
  return 1.0


def _branches(equation: Any, platform: str) -> list[core.ClosedJaxpr]:
  """Returns the branches of a `cond` that may run on the platform."""
  branches = list(equation.params["branches"])
  platforms = equation.params.get("branches_platforms")
  if not platforms:
    return branches
  own = [b for b, names in zip(branches, platforms, strict=True) if names and platform in names]
  return own or [branches[-1]]  # the default comes last


def _inner(equation: Any) -> Iterator[core.Jaxpr]:
  """Yields each jaxpr inside an equation once."""
  for value in jax.tree.leaves(
    list(equation.params.values()),
    is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
  ):
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
