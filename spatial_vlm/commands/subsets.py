"""What training commands share about trainable subsets: which part of a policy trains, what is written of it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.commands.setup import copy_processor, find_folder, master_shapes, over_mesh
from spatial_vlm.config import Config, UsageError
from spatial_vlm.model.adapter_file import write_adapter
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.int8 import PARTS, dequantized
from spatial_vlm.model.lora import new_pairs, parts_at
from spatial_vlm.model.trainable import Subset, checksums, join, leaves, split, tree_of
from spatial_vlm.model.weights import MAX_FILE_BYTES, open_checkpoint, stream_checkpoint
from spatial_vlm.types import Params, Purpose


def subset_of(config: Mapping[str, Any], lora: Mapping[str, Any]) -> Subset:
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


def parts_of(shapes: Params, subset: Subset) -> tuple[Params, Params]:
  """Shapes of what trains, pairs included, and of what is frozen. Raises ValueError for patterns that do not fit."""
  kernels = jax.eval_shape(dequantized, shapes)
  pairs = jax.eval_shape(lambda: new_pairs(kernels, subset, jax.random.key(0)))
  return split(join(shapes, pairs), subset.trainable)


def split_policy(mesh: Mesh, params: Params, subset: Subset, seed: int) -> tuple[Params, Params]:
  """(trained, frozen) of a loaded policy, with fresh pairs. Raises ValueError for patterns that do not fit, and where
  no kernel is in int8 that should be."""
  if subset.frozen_int8 and not any(path.endswith(PARTS[0]) for path in leaves(params)):
    raise ValueError(
      f"frozen_int8 is True, but trainable {subset.trainable} freezes no kernel; leave it out, or train low-rank pairs"
      " alone: trainable=('.*/lora_[ab]',) and lora.rank=16"
    )
  if not subset.rank:
    return split(params, subset.trainable)
  key = jax.random.fold_in(jax.random.key(seed), Purpose.ADAPTERS)
  shapes = jax.eval_shape(dequantized, params)
  where = sharding.param_shardings(
    mesh, jax.eval_shape(lambda k: new_pairs(shapes, subset, k), key)
  )
  pairs = jax.jit(lambda k: new_pairs(shapes, subset, k), out_shardings=where)(key)
  return split(join(params, pairs), subset.trainable)


def base_note(config: Config, frozen: Params) -> dict[str, Any]:
  """What a checkpoint says of the weights that it does not hold: whence they come, and what they were."""
  return {"folder": config.checkpoint, "checksums": checksums(frozen)}


def check_base(written: dict[str, Any], found: dict[str, int]) -> None:
  """Raises UsageError where frozen weights are not those that the run began with."""
  other = [path for path, number in found.items() if written["checksums"].get(path) != number]
  if other:
    raise UsageError(
      f"{len(other)} of the frozen weights ({other[0]} …) are not those that the run began with; put the weights back "
      f"that {written['folder']} held, or use another --workdir"
    )


def write_trained(
  workdir: epath.Path,
  base: dict[str, Any],
  model: ModelConfig,
  mesh: Mesh,
  subset: Subset,
  trained: Params,
) -> None:
  """WORKDIR/export, a Hugging Face folder with all weights, pairs merged; of pairs alone also WORKDIR/adapter."""
  flat = leaves(trained)
  leaf_at = with_base(flat.__getitem__, base, mesh, model, subset)
  copy_processor(workdir / "export", find_folder(base["folder"]))
  stream_checkpoint(workdir / "export", model, leaf_at, "float32", MAX_FILE_BYTES)
  if all(is_pair(path) for path in flat):
    write_adapter(workdir / "adapter", base["folder"], model, subset, trained)


def is_pair(path: str) -> bool:
  """Whether the parameter is half of a low-rank pair."""
  return path.endswith(("/lora_a", "/lora_b"))


def trained_shapes(mesh: Mesh, model: ModelConfig, subset: Subset) -> Params:
  """What trains, float32 and laid out over the mesh. Raises ValueError for patterns that do not fit the model."""
  trained, _ = parts_of(master_shapes(mesh, model, subset), subset)
  return over_mesh(mesh, trained)


def with_base(
  trained_at: Callable[[str], jax.Array],
  base: dict[str, Any],
  mesh: Mesh,
  model: ModelConfig,
  subset: Subset,
) -> Callable[[str], jax.Array | Params]:
  """Path -> the weight after training, or what its kernel is made of: from `trained_at`, or from the files of the base
  (`base_note`), which are refused if they are no longer what the run began with. Weights that the run held in a
  narrower type are as in the files; those that it held in int8 are so here."""
  trained, frozen = (leaves(part) for part in parts_of(master_shapes(mesh, model, subset), subset))
  checkpoint = open_checkpoint(find_folder(base["folder"])) if frozen else None

  def leaf_at(path: str) -> jax.Array:
    if path in trained:
      return trained_at(path)
    assert checkpoint is not None
    held = frozen[path]
    dtype = held.dtype if path.endswith(PARTS[0]) else np.float32
    wanted = jax.ShapeDtypeStruct(held.shape, dtype, sharding=held.sharding)
    leaf = leaves(checkpoint.read(tree_of({path: wanted})))[path]
    check_base(base, checksums({path: leaf.astype(held.dtype)}))
    return leaf

  return lambda path: parts_at(leaf_at, subset, path)
