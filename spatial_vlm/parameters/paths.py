"""The table of parameters: the sharding, the matrix axes and the weight decay of each, by its path.

A parameter's path joins the keys of the nested dict ("text/layers/mlp/up_proj/kernel"). LoRA factors and int8 kernels
have no rows of their own: theirs follow from the row of their kernel.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

P = PartitionSpec


class MatrixAxes(NamedTuple):
  """Axes of a kernel as a matrix, counted from the last; further axes (layers) stack such matrices."""

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


class ParameterRow(NamedTuple):
  """Properties of the parameters whose path matches `pattern` in full."""

  pattern: str
  """Regular expression."""
  spec: PartitionSpec
  """Of the last dimensions; a leading layer axis is never sharded."""
  matrix: MatrixAxes | None
  """None for vectors and embeddings, which are not multiplied as matrices."""
  decays: bool
  """Whether weight decay applies: to kernels and embeddings, not to biases and norms."""


MATRIX = MatrixAxes((-2,), (-1,))  # D → F
TO_HEADS = MatrixAxes((-3,), (-2, -1))  # D → N H
FROM_HEADS = MatrixAxes((-3, -2), (-1,))  # N H → D

_TWO_LAYERS = r"(vision/(blocks/mlp|merger|deepstack_mergers)|encoder/layers/mlp)"

PARAMETERS = (
  ParameterRow(
    r"(text/embed|head|encoder/embed/words)/embedding", P("tensor", "fsdp"), None, True
  ),  # V D
  ParameterRow(r".*/attention/[qkv]_proj/kernel", P("fsdp", "tensor", None), TO_HEADS, True),
  ParameterRow(r".*/attention/(o|out)_proj/kernel", P("tensor", None, "fsdp"), FROM_HEADS, True),
  ParameterRow(r"text/layers/mlp/(gate|up)_proj/kernel", P("fsdp", "tensor"), MATRIX, True),
  ParameterRow(r"text/layers/mlp/down_proj/kernel", P("tensor", "fsdp"), MATRIX, True),
  ParameterRow(rf"{_TWO_LAYERS}/fc1/kernel", P("fsdp", "tensor"), MATRIX, True),
  ParameterRow(rf"{_TWO_LAYERS}/fc2/kernel", P("tensor", "fsdp"), MATRIX, True),
  ParameterRow(r"vision/patch_embed/proj/kernel", P(None, "fsdp"), MATRIX, True),  # P D
  ParameterRow(r"vision/patch_embed/positions/embedding", P(None, "fsdp"), None, True),
  ParameterRow(r"encoder/embed/(positions|types)/embedding", P(None, "fsdp"), None, True),
  ParameterRow(r"encoder/heads/(lexical|vectors)/kernel", P("fsdp", "tensor"), MATRIX, True),
  ParameterRow(r"(text|vision|encoder)/.*/(bias|scale)", P(), None, False),
)
"""Every parameter matches exactly one row. The `tensor` axis shards whole heads where it can: their width H stays
together."""

LORA_FACTORS = ("lora_a", "lora_b")
LORA_SCALE = "lora_scale"
ADAPTER = (*LORA_FACTORS, LORA_SCALE)
"""Names of a kernel's LoRA factors and of their constant α/r (`parameters.lora`)."""
INT8 = ("kernel_int8", "kernel_scale")
"""Names of a quantized kernel and of its scales (`parameters.int8`)."""


def path_name(path: Any) -> str:
  """Returns the name of a JAX key path: its keys, joined by "/"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def sibling(path: str, name: str) -> str:
  """Returns the path of the parameter `name` in the same module.

  >>> sibling("text/layers/mlp/up_proj/kernel", "lora_a")
  'text/layers/mlp/up_proj/lora_a'
  """
  module, slash, _ = path.rpartition("/")
  return f"{module}{slash}{name}"


def parameter_row(path: str) -> ParameterRow:
  """Returns the row of PARAMETERS for the parameter at `path`.

  LoRA factors, int8 kernels and their scales are sharded as their kernel on the axes that they share with it.

  Raises:
    ValueError: no row, or more than one, matches the path.
  """
  name = path.rpartition("/")[2]
  if name not in (*ADAPTER, *INT8):
    return _matching_row(path)
  kernel = _matching_row(sibling(path, "kernel"))
  assert kernel.matrix is not None, path
  inputs = tuple(kernel.spec)[: len(kernel.matrix.inputs)]
  outputs = tuple(kernel.spec)[len(kernel.matrix.inputs) :]
  specs = {
    "lora_a": P(*inputs, None),
    "lora_b": P(None, *outputs),
    "lora_scale": P(),
    "kernel_int8": kernel.spec,
    "kernel_scale": P(*(None for _ in inputs), *outputs),
  }
  return kernel._replace(spec=specs[name], matrix=None)


def _matching_row(path: str) -> ParameterRow:
  rows = [row for row in PARAMETERS if re.fullmatch(row.pattern, path)]
  if len(rows) != 1:
    raise ValueError(
      f"parameter {path!r} matches {len(rows)} rows of parameters.paths.PARAMETERS; exactly one must match. Add a row "
      "with its pattern, PartitionSpec, matrix axes and decay, or narrow a pattern."
    )
  return rows[0]


def split_axes(path: str, values: Sequence[Any]) -> tuple[tuple, tuple, tuple]:
  """Splits one value per axis of the kernel at `path` (its sizes, say) into (leading, inputs, outputs).

  >>> split_axes("text/layers/attention/q_proj/kernel", (36, 4096, 32, 128))
  ((36,), (4096,), (32, 128))
  """
  matrix = parameter_row(path).matrix
  assert matrix is not None, path
  values = tuple(values)
  last = len(values) - len(matrix.outputs)
  first = last - len(matrix.inputs)
  return values[:first], values[first:last], values[last:]
