"""Reads and writes the weights of Hugging Face checkpoint folders as stacked parameters.

Weights move tensor by tensor between the files and the slices of the stacks on this process's devices. There is never a
second copy of the model.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, DTypeLike

from spatial_vlm.huggingface.folder import CONFIG_FILE
from spatial_vlm.huggingface.safetensors_folder import (
  DTYPES,
  Inventory,
  StoredTensor,
  TensorPlan,
  inventory,
  row_blocks,
  write_folder,
)
from spatial_vlm.huggingface.tensor_slices import Index, bounds_of, box_of
from spatial_vlm.huggingface.tensor_table import (
  EMBEDDING,
  HEAD,
  Tensor,
  current_name,
  tensor_of_parameter,
  tensors,
)
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.parameters.int8 import source_and_conversion
from spatial_vlm.parameters.lora import effective_kernels
from spatial_vlm.parameters.partition import flatten, unflatten
from spatial_vlm.parameters.paths import path_name
from spatial_vlm.types import Device, Params

MAX_FILE_BYTES = 5 * 10**9
"""Size of a file's values at which transformers starts the next file."""


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
  """A folder whose headers agree with its config.json; the weights are not read yet."""

  config: ModelConfig
  shapes: Params
  """Shapes of all parameters, in the types of the files (`jax.ShapeDtypeStruct`)."""
  stored: Mapping[str, StoredTensor]

  def read(self, wanted: Params) -> Params:
    """Returns the parameters that `wanted` describes, a tree of `jax.ShapeDtypeStruct` with the shapes of `shapes`.

    A leaf with a sharding becomes an array on the whole mesh; this process reads the parts of its own devices, once. A
    leaf without a sharding becomes a NumPy array. Values are cast to the leaf's dtype. Kernels may be wanted in int8
    (`parameters.int8.storage_shapes`): they are quantized on the host by whole rows, also if a device holds a part of
    them, and their files are read twice, once for the scales. Memory besides the result: one leaf's slices, and one
    block of a file.
    """
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: self._read_leaf(path_name(path), leaf), wanted
    )

  def _read_leaf(self, path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray | jax.Array:
    if leaf.sharding is None:
      return self.slices(path, leaf, [(slice(None),) * len(leaf.shape)])[0]
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    index_of_device = {device: index for device, index in indices.items() if index is not None}
    parts = self.on_devices(path, leaf, index_of_device)
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

  def on_devices(
    self, path: str, leaf: jax.ShapeDtypeStruct, index_of_device: Mapping[Device, Index]
  ) -> list[jax.Array]:
    """Returns each device's part of the parameter; devices with the same part share one read."""
    devices_of = collections.defaultdict(list)
    for device, index in index_of_device.items():
      devices_of[bounds_of(index, leaf.shape)].append(device)
    indices = [tuple(slice(*bounds) for bounds in key) for key in devices_of]
    slices = self.slices(path, leaf, indices)
    slices.reverse()
    arrays = {}
    for devices in devices_of.values():
      part = slices.pop()  # drops the host's reference once the part is on its devices
      arrays |= {device: jax.device_put(part, device) for device in devices}
    # Transfers that are under way keep their host memory, so the next leaf waits for them.
    return jax.block_until_ready([arrays[device] for device in index_of_device])

  def slices(
    self, path: str, leaf: jax.ShapeDtypeStruct, indices: Sequence[Index]
  ) -> list[np.ndarray]:
    """Returns parts of the parameter at `path`, cast to `leaf.dtype`; each range of a file is read once."""
    source, convert = source_and_conversion(path)
    tensor, part = tensor_of_parameter(self.config)[source]
    boxes = [box_of(tensor, part, leaf.shape, index) for index in indices]
    result = [np.empty(box.shape, leaf.dtype) for box in boxes]
    matrices = [box.as_matrices(array) for box, array in zip(boxes, result, strict=True)]
    rows = functools.reduce(np.union1d, [box.rows for box in boxes])

    for layer, name in enumerate(tensor.names(leaf.shape)):
      takers = [
        (box, stack[layer - box.layers.start])
        for box, stack in zip(boxes, matrices, strict=True)
        if box.layers.start <= layer < box.layers.stop
      ]
      if not takers:
        continue
      for first, block in row_blocks(self.stored[name], rows):
        block = convert(block)
        for box, matrix in takers:
          box.take(first, block, matrix)
    return result


def open_checkpoint(folder: epath.PathLike, config: ModelConfig) -> CheckpointFolder:
  """Checks all headers of a Hugging Face Qwen3-VL folder, local or remote (gs://), against its model's `config`.

  Raises:
    FileNotFoundError: the safetensors are missing.
    ValueError: files are missing, damaged or outside the folder; tensors are missing, unknown, or of another shape or
      type (one error lists all differences); or a tied head differs from the embedding.
  """
  folder = epath.Path(folder)
  found = _with_current_names(inventory(folder))
  expected = _tensors_by_name(config)
  if HEAD in found.tensors and HEAD not in expected and EMBEDDING in found.tensors:
    _check_tied_head(folder, found.tensors[HEAD], found.tensors[EMBEDDING])
    del found.tensors[HEAD]
  problems = [*found.problems, *_problems(expected, found.tensors, found.lost)]
  if problems:
    raise ValueError(
      f"The weights in {folder} are not those of its {CONFIG_FILE} ({len(problems)} differences):\n  "
      + "\n  ".join(problems)
    )
  return CheckpointFolder(config, _stored_shapes(config, found.tensors), found.tensors)


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


def _tensors_by_name(config: ModelConfig) -> dict[str, Tensor]:
  """Returns name in the files -> tensor, for every layer, in the order of the table."""
  shapes = flatten(abstract_params(config))
  return {
    name: tensor
    for tensor in tensors(config)
    for name in tensor.names(shapes[tensor.paths[0]].shape)
  }


def _problems(
  expected: Mapping[str, Tensor], found: Mapping[str, StoredTensor], lost: set[str]
) -> list[str]:
  missing = sorted(expected.keys() - found.keys() - lost)
  problems = [f"missing: {name} {list(expected[name].shape)}" for name in missing]
  unknown = sorted(found.keys() - expected.keys())
  problems += [f"not read: {name} {list(found[name].shape)}" for name in unknown]
  common = sorted(expected.keys() & found.keys())
  problems += [
    f"wrong shape: {name} {list(found[name].shape)}, config.json makes it {list(expected[name].shape)}"
    for name in common
    if expected[name].shape != found[name].shape
  ]
  types = collections.defaultdict(collections.Counter)
  for name in common:
    types[expected[name].name][found[name].dtype] += 1
  for name in common:
    usual = types[expected[name].name].most_common(1)[0][0]
    if found[name].dtype not in DTYPES:
      problems.append(f"wrong dtype: {name} {found[name].dtype}, weights are {', '.join(DTYPES)}")
    elif found[name].dtype != usual:
      problems.append(f"wrong dtype: {name} {found[name].dtype}, that of most layers is {usual}")
  return problems


def _stored_shapes(config: ModelConfig, stored: Mapping[str, StoredTensor]) -> Params:
  """Returns the shapes of all parameters, in the types of the files."""
  shapes, result = flatten(abstract_params(config)), {}
  for path, (tensor, _) in tensor_of_parameter(config).items():
    shape = shapes[path].shape
    dtype = DTYPES[stored[next(tensor.names(shape))].dtype]
    result[path] = jax.ShapeDtypeStruct(shape, dtype)
  return unflatten(result)


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
  arrays = _stream(config, leaf_at, dtype)
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
  (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
  write_folder(folder, plan_tensors(config, dtype), arrays, max_file_bytes)


def plan_tensors(config: ModelConfig, dtype: np.dtype) -> list[TensorPlan]:
  """Returns the tensors that a checkpoint's files hold, in the order of the table and of the layers."""
  return [
    TensorPlan(name, tensor.shape, dtype) for name, tensor in _tensors_by_name(config).items()
  ]


def _stream(
  config: ModelConfig, leaf_at: Callable[[str], np.ndarray | jax.Array | Params], dtype: np.dtype
) -> Iterator[np.ndarray]:
  """Yields the tensors of the checkpoint, in the order of the table."""
  for tensor in tensors(config):
    leaves = [leaf_at(path) for path in tensor.paths]
    stacked = jax.tree.leaves(leaves)[0]
    layers = range(len(stacked)) if tensor.is_stacked else [None]
    for layer in layers:
      yield _join_parts(tensor, [_on_host(leaf, layer, dtype) for leaf in leaves])
    del leaves, stacked  # frees them before the next ones are made


def _join_parts(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
  """Returns a tensor of the checkpoint, made of its parameters."""
  count = tensor.shape[0] // len(parts)
  if tensor.is_matrix:
    rows = [part.reshape(-1, count).T for part in parts]
  else:
    rows = [part.reshape(count, -1) for part in parts]
  return (rows[0] if len(rows) == 1 else np.concatenate(rows)).reshape(tensor.shape)


def _on_host(
  leaf: np.ndarray | jax.Array | Params, layer: int | None, dtype: np.dtype
) -> np.ndarray:
  """Returns a layer of a stack (or the whole array), cast, in this process's memory."""
  if isinstance(leaf, np.ndarray):
    return (leaf if layer is None else leaf[layer]).astype(dtype, copy=False)
  # This makes a new array: a JAX array that was once copied to the host keeps that copy.
  array = jax.tree.leaves(leaf)[0]
  replicated = (
    None if array.is_fully_addressable else NamedSharding(array.sharding.mesh, PartitionSpec())
  )
  return np.asarray(layer_selector(dtype, replicated)(leaf, layer))


@functools.cache
def layer_selector(dtype: np.dtype, sharding: NamedSharding | None) -> Callable[..., jax.Array]:
  """Returns (leaf, layer) -> the layer of a stack, or the whole array without one, cast; a compiled program."""

  def select(leaf, layer: ArrayLike | None):
    if layer is not None:
      leaf = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), leaf)
    kernel = effective_kernels(leaf)["kernel"] if isinstance(leaf, dict) else leaf
    return kernel.astype(dtype)

  return jax.jit(select, out_shardings=sharding)


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Returns the shapes of the parameters (`jax.ShapeDtypeStruct`) without allocating them."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
