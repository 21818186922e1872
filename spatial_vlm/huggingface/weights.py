"""Reads and writes the weights of Hugging Face checkpoint folders of Qwen3-VL as stacked parameters."""

import collections
import json
from collections.abc import Callable, Iterable

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jaxtyping import DTypeLike

from spatial_vlm.huggingface.checkpoint_folder import (
  CheckpointFolder,
  match_tensors,
  stream_tensors,
  tensors_by_name,
)
from spatial_vlm.huggingface.folder import CONFIG_FILE
from spatial_vlm.huggingface.safetensors_folder import (
  Inventory,
  StoredTensor,
  TensorPlan,
  inventory,
  row_blocks,
  write_folder,
)
from spatial_vlm.huggingface.tensor_table import EMBEDDING, HEAD, current_name, tensors
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.remote import write_whole
from spatial_vlm.types import Params

MAX_FILE_BYTES = 5 * 10**9
"""Size of a file's values at which transformers starts the next file."""


def open_checkpoint(folder: epath.PathLike, config: ModelConfig) -> CheckpointFolder:
  """Checks all headers of a Hugging Face Qwen3-VL folder, local or remote (gs://), against its model's `config`.

  Raises:
    FileNotFoundError: the safetensors are missing.
    ValueError: files are missing, damaged or outside the folder; tensors are missing, unknown, or of another shape or
      type (one error lists all differences); or a tied head differs from the embedding.
  """
  folder = epath.Path(folder)
  found = _with_current_names(inventory(folder))
  is_tied = config.tie_word_embeddings
  if is_tied and HEAD in found.tensors and EMBEDDING in found.tensors:
    _check_tied_head(folder, found.tensors[HEAD], found.tensors[EMBEDDING])
    del found.tensors[HEAD]
  return match_tensors(folder, config, tensors(config), abstract_params(config), found)


def _with_current_names(found: Inventory) -> Inventory:
  """Renames tensors that have older names, unless two of them would get the same name."""
  names = collections.Counter(map(current_name, found.tensors))
  tensors = {
    name if names[current_name(name)] > 1 else current_name(name): tensor
    for name, tensor in found.tensors.items()
  }
  return Inventory(tensors, found.problems, {current_name(name) for name in found.lost})


def _check_tied_head(folder: epath.Path, head: StoredTensor, embedding: StoredTensor) -> None:
  """Accepts a head that some trainers store although it is tied; raises ValueError unless it equals the embedding."""
  is_equal = (head.shape, head.dtype) == (embedding.shape, embedding.dtype) and all(
    np.array_equal(a, b, equal_nan=False)
    for (_, a), (_, b) in zip(
      row_blocks(head, np.arange(head.shape[0])),
      row_blocks(embedding, np.arange(embedding.shape[0])),
      strict=True,
    )
  )
  if not is_equal:
    raise ValueError(
      f"{folder} ties the head to the embedding (tie_word_embeddings in {CONFIG_FILE}), but its {HEAD} differs from "
      f"{EMBEDDING}; set tie_word_embeddings to false if the head was trained on its own, or remove {HEAD}"
    )


def stream_checkpoint(
  folder: epath.PathLike,
  config: ModelConfig,
  leaf_at: Callable[[str], np.ndarray | jax.Array | Params],
  dtype: DTypeLike,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes config.json and safetensors, which transformers' `from_pretrained` loads, one tensor at a time.

  All processes call this; process 0 writes. A tied head is stored once. Weights that `folder`, local or remote (gs://),
  already has are replaced.

  Args:
    leaf_at: returns the array at a path, of any sharding, or a dict of the arrays from which its kernel is made
      (`parameters.lora.read_with_parts`).
  """
  folder, dtype = epath.Path(folder), np.dtype(dtype)
  arrays = stream_tensors(tensors(config), leaf_at, dtype)
  if jax.process_index() == 0:
    write_tensors(folder, config, arrays, dtype, max_file_bytes)
  collections.deque(arrays, maxlen=0)  # processes other than 0 take part in gathering
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"written {folder}")


def write_tensors(
  folder: epath.Path,
  config: ModelConfig,
  arrays: Iterable[np.ndarray],
  dtype: np.dtype,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes config.json and the tensors of `plan_tensors(config, dtype)`, in their order."""
  folder.mkdir(parents=True, exist_ok=True)
  description = {**config.to_huggingface(), "dtype": dtype.name}
  write_whole(folder / CONFIG_FILE, json.dumps(description, indent=2, sort_keys=True) + "\n")
  write_folder(folder, plan_tensors(config, dtype), arrays, max_file_bytes)


def plan_tensors(config: ModelConfig, dtype: np.dtype) -> list[TensorPlan]:
  """Returns the tensors that a checkpoint's files hold, in the order of the table and of the layers."""
  return [
    TensorPlan(name, tensor.shape, dtype)
    for name, tensor in tensors_by_name(tensors(config), abstract_params(config)).items()
  ]


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Returns the shapes of the parameters (`jax.ShapeDtypeStruct`) without allocating them."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
