"""Writes the weights after training, trained and frozen ones together, as a Hugging Face folder."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from spatial_vlm.config import Config, UsageError
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.huggingface.peft_adapter import write_adapter
from spatial_vlm.huggingface.weights import MAX_FILE_BYTES, open_checkpoint, stream_checkpoint
from spatial_vlm.inference.loading import training_shapes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.lora import is_adapter, partition_shapes, read_with_parts
from spatial_vlm.parameters.partition import Subset, checksums, flatten, unflatten
from spatial_vlm.parameters.paths import INT8
from spatial_vlm.sharding import with_param_shardings
from spatial_vlm.train.policy_folder import write_policy_files
from spatial_vlm.train.policy_knowledge import Settings
from spatial_vlm.types import Params


def base_record(config: Config, frozen: Params) -> dict[str, Any]:
  """Returns the folder and the checksums of the frozen weights, which checkpoints do not store."""
  return {"folder": config.checkpoint, "checksums": checksums(frozen)}


def check_base(written: dict[str, Any], found: dict[str, int]) -> None:
  """Raises UsageError where frozen weights differ from those that the run started with."""
  other = [path for path, number in found.items() if written["checksums"].get(path) != number]
  if other:
    raise UsageError(
      f"{len(other)} of the frozen weights ({other[0]} …) differ from those that the run started with; restore the "
      f"weights of {written['folder']}, or use another --workdir"
    )


def write_trained(
  workdir: epath.Path,
  settings: Settings,
  base: dict[str, Any],
  model: ModelConfig,
  mesh: Mesh,
  subset: Subset,
  trained: Params,
) -> None:
  """Writes WORKDIR/export, a Hugging Face folder with LoRA merged; where only LoRA trains, also WORKDIR/adapter.

  `settings` are those of the run, by their dotted names.
  """
  flat = flatten(trained)
  leaf_at = with_base(flat.__getitem__, base, mesh, model, subset)
  write_policy_files(workdir / "export", find_folder(base["folder"]), settings)
  stream_checkpoint(workdir / "export", model, leaf_at, "float32", MAX_FILE_BYTES)
  if all(is_adapter(path) for path in flat):
    write_adapter(workdir / "adapter", base["folder"], model, subset, trained)


def trained_shapes(mesh: Mesh, model: ModelConfig, subset: Subset) -> Params:
  """Returns float32 shapes of the trained parameters, with shardings.

  Raises ValueError for patterns that match nothing.
  """
  trained, _ = partition_shapes(training_shapes(mesh, model, subset), subset)
  return with_param_shardings(mesh, trained)


def with_base(
  trained_at: Callable[[str], jax.Array],
  base: dict[str, Any],
  mesh: Mesh,
  model: ModelConfig,
  subset: Subset,
) -> Callable[[str], jax.Array | Params]:
  """Returns path -> the weight after training, or the parts that its kernel is made of.

  Trained weights come from `trained_at`, frozen ones from the files of the base, whose checksums must match
  (`base_record`). Frozen weights keep the type of the files, except int8 kernels, which stay int8.
  """
  trained, frozen = (
    flatten(part) for part in partition_shapes(training_shapes(mesh, model, subset), subset)
  )
  checkpoint = open_checkpoint(find_folder(base["folder"]), model) if frozen else None

  def leaf_at(path: str) -> jax.Array:
    if path in trained:
      return trained_at(path)
    assert checkpoint is not None
    shape = frozen[path]
    dtype = shape.dtype if path.endswith(INT8[0]) else np.float32
    wanted = jax.ShapeDtypeStruct(shape.shape, dtype, sharding=shape.sharding)
    leaf = flatten(checkpoint.read(unflatten({path: wanted})))[path]
    check_base(base, checksums({path: leaf.astype(shape.dtype)}))
    return leaf

  return lambda path: read_with_parts(leaf_at, subset, path)
