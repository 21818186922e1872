"""Parameters by path: how each is sharded, its axes as a matrix, whether it decays."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from optax.contrib import MuonDimensionNumbers

P = PartitionSpec

PARAMETERS: tuple[tuple[str, PartitionSpec], ...] = (
  (r"(text/embed|head)/embedding", P("tensor", "fsdp")),  # V D
  (r".*/attention/[qkv]_proj/kernel", P("fsdp", "tensor", None)),  # D N H
  (r".*/attention/(o|out)_proj/kernel", P("tensor", None, "fsdp")),  # N H D
  (r"text/layers/mlp/(gate|up)_proj/kernel", P("fsdp", "tensor")),  # D F
  (r"text/layers/mlp/down_proj/kernel", P("tensor", "fsdp")),  # F D
  (r"vision/(blocks/mlp|merger|deepstack_mergers)/fc1/kernel", P("fsdp", "tensor")),  # D F
  (r"vision/(blocks/mlp|merger|deepstack_mergers)/fc2/kernel", P("tensor", "fsdp")),  # F D
  (r"vision/patch_embed/(proj/kernel|positions/embedding)", P(None, "fsdp")),  # P D
  (r"(text|vision)/.*/(bias|scale)", P()),
)
"""Path of a parameter (regular expression, in full) -> spec of its last dimensions; a leading layer axis is never
cut. Heads are cut whole where that is possible: their width H stays together."""


MATRICES: tuple[tuple[str, MuonDimensionNumbers], ...] = (
  (r".*/attention/[qkv]_proj/kernel", MuonDimensionNumbers(-3, (-2, -1))),  # D → N H
  (r".*/attention/(o|out)_proj/kernel", MuonDimensionNumbers((-3, -2), -1)),  # N H → D
  (r".*/kernel", MuonDimensionNumbers(-2, -1)),  # D → F
)
"""Path of a parameter (regular expression, in full; the first that fits) -> its axes as a matrix, counted from the
last: a leading layer axis makes a stack of matrices."""


def matrix_axes(path: str) -> MuonDimensionNumbers | None:
  """The axes of the parameter at `path` as a matrix; None for what is no matrix, or an embedding."""
  return next((axes for pattern, axes in MATRICES if re.fullmatch(pattern, path)), None)


def as_matrix(path: str, axes: Sequence[Any]) -> tuple[tuple, tuple, tuple]:
  """What there is of each axis of the kernel at `path` (its size, its mesh axis), as (leading, inputs, outputs)."""
  numbers = matrix_axes(path)
  assert numbers is not None, path
  count = np.size(numbers.output_axis)
  inputs = np.size(numbers.reduction_axis)
  axes = tuple(axes)
  first = len(axes) - count - inputs
  return axes[:first], axes[first : first + inputs], axes[first + inputs :]


def decays(path: str) -> bool:
  """Whether weight decay applies to the parameter at `path`: to matrices, not to biases or norms.

  The name decides, not the number of axes: a stack of bias vectors has two, like a matrix.

  >>> [decays(f"text/layers/{name}") for name in ("up_proj/kernel", "q_norm/scale", "qkv/bias")]
  [True, False, False]
  """
  *_, leaf = parts = path.lower().split("/")
  return leaf not in ("bias", "scale") and not any("norm" in part for part in parts)


def path_name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def partition_spec(name: str) -> PartitionSpec:
  """The row of the table; LoRA factors (`parameters.lora`) and an int8 kernel with its scales
  (`parameters.int8`) are sharded as the kernel on the axes they share."""
  owner, _, leaf = name.rpartition("/")
  if leaf not in ("lora_a", "lora_b", "lora_scale", "kernel_int8", "kernel_scale"):
    return _row(name)
  kernel = f"{owner}/kernel"
  _, inputs, outputs = as_matrix(kernel, _row(kernel))
  specs = {
    "lora_a": P(*inputs, None),
    "lora_b": P(None, *outputs),
    "lora_scale": P(),
    "kernel_int8": _row(kernel),
    "kernel_scale": P(*(None for _ in inputs), *outputs),
  }
  return specs[leaf]


def _row(name: str) -> PartitionSpec:
  specs = [spec for pattern, spec in PARAMETERS if re.fullmatch(pattern, name)]
  if len(specs) != 1:
    raise ValueError(
      f"parameter {name!r} matches {len(specs)} rows of parameters.paths.PARAMETERS; it must match exactly one. "
      "Add or narrow a row."
    )
  return specs[0]
