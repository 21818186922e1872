"""Floating-point operations of a program, counted in its traced form.

What is computed again in a backward pass, and the turns of every `scan`, are there as they will run. (A compiler's
own figure counts the body of a loop once.)
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from spatial_vlm.model.config import ModelConfig


def traced_flops(jaxpr: core.Jaxpr, turns: int = 1) -> float:
  """Operations of all products of matrices, 2 for each multiplication, over all devices.

  `turns`: how often each `while` runs, whose end is data (the tokens of an answer). Of branches for several platforms
  the one with the most operations counts.
  """
  total = 0.0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      total += _of_product(equation)
    elif equation.primitive.name == "cond":
      total += max(traced_flops(branch.jaxpr, turns) for branch in equation.params["branches"])
    else:
      repeats = _repeats(equation, turns)
      total += sum(repeats * traced_flops(inner, turns) for inner in _inner(equation))
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


def forward_flops(
  model: ModelConfig, rows: int, tokens: int, patches: int, scored: int | None = None
) -> float:
  """Operations of a forward pass over `rows` of `tokens` and `patches`, causal attention counted in half.

  Text, a layer: 2·T·(D·(2N + 2K)·H + 3·D·F) for its kernels and 2·T²·N·H for attention; vision alike, over M patches
  without causality; the mergers; and 2·S·D·V for the scores of `scored` tokens (all of them, unless given).
  """
  return rows * (
    _text(model, tokens)
    + _vision(model, patches)
    + 2 * (tokens if scored is None else scored) * model.text.hidden_size * model.text.vocab_size
  )


def _text(model: ModelConfig, T: int) -> float:
  text = model.text
  D, F, H = text.hidden_size, text.intermediate_size, text.head_dim
  N, K = text.num_attention_heads, text.num_key_value_heads
  kernels = D * (2 * N + 2 * K) * H + 3 * D * F
  return text.num_hidden_layers * (2 * T * kernels + 2 * T * T * N * H)


def _vision(model: ModelConfig, M: int) -> float:
  vision = model.vision
  D, F = vision.hidden_size, vision.intermediate_size
  merged = D * vision.merge_unit
  mergers = 1 + len(vision.deepstack_visual_indexes)
  kernels = vision.depth * (4 * D * D + 2 * D * F) + vision.patch_dim * D
  merge = mergers * (merged * merged + merged * vision.out_hidden_size) / vision.merge_unit
  return 2 * M * (kernels + merge) + vision.depth * 4 * M * M * D
