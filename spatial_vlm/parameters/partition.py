"""Trainable subsets: patterns of parameter paths tell what trains; everything else is read and never changes.

Gradients, optimizer state and checkpoints exist for what trains alone. The two parts are trees of the same paths, so
that `combine` gives the model all it reads; with the pattern `.*` nothing is frozen, and nothing differs.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Shaped, UInt32

from spatial_vlm.config import UsageError
from spatial_vlm.types import Params

NOTHING: Params = {}


@dataclasses.dataclass(frozen=True)
class Subset:
  """What of a model a run trains.

  trainable: regular expressions, one of which fits the path of a parameter in full if it trains;
  rank: r, columns of the low-rank pairs (`parameters.lora`) beside the kernels whose paths `targets` fit; 0: no pairs;
  alpha: α, the pairs' product counts α/r times; frozen_dtype: type in which everything else is held, but for kernels
  with `frozen_int8` (`parameters.int8`).
  """

  trainable: tuple[str, ...]
  rank: int
  alpha: float
  targets: tuple[str, ...]
  frozen_dtype: str
  frozen_int8: bool


EVERYTHING = Subset(
  trainable=(".*",), rank=0, alpha=1.0, targets=(), frozen_dtype="float32", frozen_int8=False
)

CONSTANTS = ("lora_scale", "kernel_int8", "kernel_scale")
"""Names of what no pattern reaches: α/r of low-rank pairs, and quantized kernels."""


def flatten(params: Params) -> dict[str, Array]:
  """Path ("text/embed/embedding") -> array or shape."""
  flat: Any = flatten_dict(params, sep="/")
  return flat


def unflatten(flat: dict[str, Array]) -> Params:
  """Undoes `flatten`."""
  return unflatten_dict(flat, sep="/")


def fits(path: str, patterns: Sequence[str]) -> bool:
  """Whether one of the patterns fits the path in full."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def trains(path: str, patterns: Sequence[str]) -> bool:
  """Whether the parameter trains."""
  return path.rpartition("/")[2] not in CONSTANTS and fits(path, patterns)


def partition(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
  """(trained, frozen): the parameters (arrays or shapes) whose paths the patterns fit, and the others.

  Raises ValueError for a pattern that fits none, and where nothing would train.
  """
  flat = flatten(params)
  for pattern in patterns:
    if not any(trains(path, [pattern]) for path in flat):
      raise ValueError(
        f"trainable names {pattern!r}, which is the path of no parameter; there are, among others, "
        f"{', '.join(list(flat)[:: max(len(flat) // 4, 1)][:4])}"
      )
  trained = {path: leaf for path, leaf in flat.items() if trains(path, patterns)}
  if not trained:
    raise ValueError("trainable is empty; ('.*',) trains every parameter")
  return unflatten(trained), unflatten({path: flat[path] for path in flat.keys() - trained.keys()})


def combine(trained: Params, frozen: Params) -> Params:
  """All parameters; undoes `partition`."""
  return unflatten(flatten(trained) | flatten(frozen))


def checksums(params: Params) -> dict[str, int]:
  """A number for every array: it differs if a value, or the place of one, does; it does not tell where they lie.

  Σᵢ bitsᵢ · (2i + 1) mod 2³²: sums of integers do not depend on their order, so meshes do not matter.
  """
  return {path: int(number) for path, number in _checksums(flatten(params)).items()}


@jax.jit
def _checksums(flat: dict[str, Array]) -> dict[str, Array]:
  return {path: _checksum(leaf) for path, leaf in flat.items()}


def _checksum(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
  index = jnp.zeros(leaf.shape, jnp.uint32)
  for axis in range(leaf.ndim):
    stride = jnp.uint32(math.prod(leaf.shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * stride
  return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def subset_from_config(config: Mapping[str, Any], lora: Mapping[str, Any]) -> Subset:
  """What a training command's settings, and those of their group `lora`, say of it. Raises UsageError for ranks, alphas
  and patterns that cannot be."""
  if lora["rank"] < 0 or lora["alpha"] <= 0:
    raise UsageError(
      f"lora.rank is {lora['rank']} and lora.alpha {lora['alpha']}; rank is 0 (no pairs) or more, alpha above 0"
    )
  for pattern in (*config["trainable"], *lora["targets"]):
    try:
      re.compile(pattern)
    except re.error as error:
      raise UsageError(
        f"{pattern!r} in trainable or lora.targets is no regular expression: {error}; '.*' fits anything"
      ) from error
  return Subset(
    trainable=tuple(config["trainable"]),
    rank=lora["rank"],
    alpha=lora["alpha"],
    targets=tuple(lora["targets"]),
    frozen_dtype=config["dtype"],
    frozen_int8=config["frozen_int8"],
  )
