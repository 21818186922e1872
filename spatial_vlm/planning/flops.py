"""Floating-point operations of a program, counted in its traced form.

What is computed again in a backward pass, and the turns of every `scan`, are there as they will run. (A compiler's
own figure counts the body of a loop once.)
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


def traced_flops(jaxpr: core.Jaxpr, turns: int = 1, platform: str = "tpu") -> float:
  """Operations of all products of matrices, 2 for each multiplication, over all devices.

  `turns`: how often each `while` runs, whose end is data (the tokens of an answer). Of branches for several platforms
  that of `platform` counts (a kernel's padding included), of others the one with the most operations.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _of_product(equation)
    elif equation.primitive.name == "cond":
      branches = _branches(equation, platform)
      total += max(traced_flops(branch.jaxpr, turns, platform) for branch in branches)
    else:
      repeats = _repeats(equation, turns)
      inside = sum(traced_flops(inner, turns, platform) for inner in _inner(equation))
      total += repeats * inside
  return total


def _of_product(equation: Any) -> float:
  """2 · size of the result · length of what is summed over."""
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def _repeats(equation: Any, turns: int) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "scan":
    return params["length"]
  if name == "while":
    return turns
  if name == "pallas_call":
    return math.prod(params["grid_mapping"].grid)
  if name == "shard_map":  # its body is that of one device
    return params["mesh"].size
  return 1.0


def _branches(equation: Any, platform: str) -> list[core.ClosedJaxpr]:
  branches = list(equation.params["branches"])
  platforms = equation.params.get("branches_platforms")
  if not platforms:
    return branches
  own = [b for b, names in zip(branches, platforms, strict=True) if names and platform in names]
  return own or [branches[-1]]  # the default stands last


def _inner(equation: Any) -> Iterator[core.Jaxpr]:
  """The programs inside an equation, each once."""
  for value in jax.tree.leaves(
    list(equation.params.values()),
    is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
  ):
    if isinstance(value, core.ClosedJaxpr):
      yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
      yield value
