"""Weights after training: what was trained over the frozen base, written as a Hugging Face folder."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from spatial_vlm.config import Config, UsageError
from spatial_vlm.huggingface.folder import copy_processor, find_folder
from spatial_vlm.huggingface.peft_adapter import write_adapter
from spatial_vlm.huggingface.weights import MAX_FILE_BYTES, open_checkpoint, stream_checkpoint
from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.lora import is_adapter, partition_shapes, read_with_parts
from spatial_vlm.parameters.partition import Subset, checksums, flatten, unflatten
from spatial_vlm.parameters.paths import INT8
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.types import Params


def base_record(config: Config, frozen: Params) -> dict[str, Any]:
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
  flat = flatten(trained)
  leaf_at = with_base(flat.__getitem__, base, mesh, model, subset)
  copy_processor(workdir / "export", find_folder(base["folder"]))
  stream_checkpoint(workdir / "export", model, leaf_at, "float32", MAX_FILE_BYTES)
  if all(is_adapter(path) for path in flat):
    write_adapter(workdir / "adapter", base["folder"], model, subset, trained)


def trained_shapes(mesh: Mesh, model: ModelConfig, subset: Subset) -> Params:
  """What trains, float32 and laid out over the mesh. Raises ValueError for patterns that do not fit the model."""
  trained, _ = partition_shapes(training_shapes(mesh, model, subset), subset)
  return with_param_shardings(mesh, trained)


def with_base(
  trained_at: Callable[[str], jax.Array],
  base: dict[str, Any],
  mesh: Mesh,
  model: ModelConfig,
  subset: Subset,
) -> Callable[[str], jax.Array | Params]:
  """Path -> the weight after training, or what its kernel is made of: from `trained_at`, or from the files of the base
  (`base_record`), which are refused if they are no longer what the run began with. Weights that the run held in a
  narrower type are as in the files; those that it held in int8 are so here."""
  trained, frozen = (
    flatten(part) for part in partition_shapes(training_shapes(mesh, model, subset), subset)
  )
  checkpoint = open_checkpoint(find_folder(base["folder"])) if frozen else None

  def leaf_at(path: str) -> jax.Array:
    if path in trained:
      return trained_at(path)
    assert checkpoint is not None
    held = frozen[path]
    dtype = held.dtype if path.endswith(INT8[0]) else np.float32
    wanted = jax.ShapeDtypeStruct(held.shape, dtype, sharding=held.sharding)
    leaf = flatten(checkpoint.read(unflatten({path: wanted})))[path]
    check_base(base, checksums({path: leaf.astype(held.dtype)}))
    return leaf

  return lambda path: read_with_parts(leaf_at, subset, path)
