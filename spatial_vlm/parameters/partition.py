"""Trainable subsets: regular expressions of parameter paths select what trains; the rest is frozen.

Gradients, optimizer state and checkpoints exist only for parameters that train. `partition` splits a tree of parameters
in two and `combine` joins the parts for the model; with the pattern `.*` every parameter trains.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Shaped, UInt32

from spatial_vlm.config import Config, UsageError
from spatial_vlm.parameters.paths import INT8, LORA_SCALE, path_name
from spatial_vlm.types import Params

NOTHING: Params = {}


@dataclasses.dataclass(frozen=True)
class Subset:
  """Selects the parameters that a run trains, and how it stores the others."""

  trainable: tuple[str, ...]
  """Regular expressions; a parameter trains if one of them matches its path in full."""
  rank: int
  """LoRA rank r (`parameters.lora`); 0 adds no LoRA factors."""
  alpha: float
  """LoRA α: the product of the factors is scaled by α/r."""
  targets: tuple[str, ...]
  """Regular expressions of the kernels that get LoRA factors."""
  frozen_dtype: str
  """Type of the frozen parameters, except for int8 kernels."""
  frozen_int8: bool
  """Whether frozen kernels are stored in int8 (`parameters.int8`)."""


EVERYTHING = Subset(
  trainable=(".*",), rank=0, alpha=1.0, targets=(), frozen_dtype="float32", frozen_int8=False
)

CONSTANTS = (LORA_SCALE, *INT8)
"""Names of leaves that never train, whatever the patterns: LoRA's α/r and quantized kernels."""


def flatten(params: Params) -> dict[str, Any]:
  """Returns path ("text/embed/embedding") -> leaf (array, shape or sharding)."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def unflatten(flat: Mapping[str, Any]) -> Params:
  """Returns the nested dict that `flatten` flattened."""
  return unflatten_dict(flat, sep="/")


def matches(path: str, patterns: Sequence[str]) -> bool:
  """Returns whether one of the patterns matches the path in full."""
  return any(re.fullmatch(pattern, path) for pattern in patterns)


def trains(path: str, patterns: Sequence[str]) -> bool:
  """Returns whether the parameter at `path` trains."""
  return path.rpartition("/")[2] not in CONSTANTS and matches(path, patterns)


def partition(params: Params, patterns: Sequence[str]) -> tuple[Params, Params]:
  """Splits parameters (arrays or shapes) into (trained, frozen).

  Raises:
    ValueError: a pattern matches no parameter, or nothing would train.
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
  """Returns all parameters; undoes `partition`."""
  return unflatten(flatten(trained) | flatten(frozen))


def checksums(tree: Any) -> dict[str, int]:
  """Returns a checksum of every array of a tree: Σᵢ bitsᵢ · (2i + 1) mod 2³², over its words of up to 32 bits.

  It changes with any value and with the order of the values. A sum of integers does not depend on its order, so the
  checksum is the same on every mesh, and in the memory of the host.
  """
  # One after another: on CPU devices, programs with collectives that run at once can wait for each other for ever.
  return {path: int(_checksum(_words(leaf))) for path, leaf in flatten(tree).items()}


def _words(leaf: Any) -> Array | np.ndarray:
  """Returns 64-bit values of the host as two words each, since JAX would shorten them."""
  if isinstance(leaf, Array):
    return leaf
  array = np.asarray(leaf)
  return array.reshape(-1).view(np.uint32) if array.dtype.itemsize == 8 else array


@jax.jit
def _checksum(leaf: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  if leaf.dtype == bool:
    leaf = leaf.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
  index = jnp.zeros(leaf.shape, jnp.uint32)
  for axis in range(leaf.ndim):
    stride = jnp.uint32(math.prod(leaf.shape[axis + 1 :]) % 2**32)
    index += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * stride
  return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def subset_from_config(config: Config | Mapping[str, Any]) -> Subset:
  """Builds the trainable subset from a training config, which has a group `lora`.

  Raises:
    UsageError: a rank or an alpha out of range, or a pattern that is not a regular expression.
  """
  lora = config["lora"]
  if lora["rank"] < 0 or lora["alpha"] <= 0:
    raise UsageError(
      f"lora.rank is {lora['rank']} and lora.alpha {lora['alpha']}; rank must be 0 (no LoRA) or more, alpha above 0"
    )
  for pattern in (*config["trainable"], *lora["targets"]):
    try:
      re.compile(pattern)
    except re.error as error:
      raise UsageError(
        f"{pattern!r} in trainable or lora.targets is not a regular expression: {error}; '.*' matches anything"
      ) from error
  return Subset(
    trainable=tuple(config["trainable"]),
    rank=lora["rank"],
    alpha=lora["alpha"],
    targets=tuple(lora["targets"]),
    frozen_dtype=config["dtype"],
    frozen_int8=config["frozen_int8"],
  )
