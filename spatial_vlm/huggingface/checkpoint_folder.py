"""Checkpoint folders of any model with a table of tensors: checks headers, reads and writes stacked parameters.

Weights move tensor by tensor between the files and the slices of the stacks on this process's devices. There is never a
second copy of the model.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike

from spatial_vlm.huggingface.folder import CONFIG_FILE
from spatial_vlm.huggingface.safetensors_folder import DTYPES, Inventory, StoredTensor, row_blocks
from spatial_vlm.huggingface.tensor_slices import Index, bounds_of, box_of
from spatial_vlm.huggingface.tensor_table import Tensor, tensor_of_parameter
from spatial_vlm.parameters.int8 import source_and_conversion
from spatial_vlm.parameters.lora import effective_kernels
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.parameters.paths import path_name
from spatial_vlm.types import Device, Params


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
  """A folder whose headers agree with its config.json; the weights are not read yet."""

  config: Any
  """The model's."""
  table: tuple[Tensor, ...]
  shapes: Params
  """Shapes of all parameters (`jax.ShapeDtypeStruct`), in the one type that most values of the files have.

  Some folders keep the norms in float32 and the rest in bfloat16; one type for all is what transformers casts to.
  """
  stored: Mapping[str, StoredTensor]
  """Name in the table (with its layer) → its place in a file."""

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
    tensor, part = tensor_of_parameter(self.table)[source]
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


def match_tensors(
  folder: epath.Path, config: Any, table: Sequence[Tensor], shapes: Params, found: Inventory
) -> CheckpointFolder:
  """Compares the tensors that were found with the table.

  Args:
    shapes: of all parameters of the model.

  Raises:
    ValueError: files are missing or damaged; tensors are missing, unknown, or of another shape or type (one error lists
      all differences).
  """
  expected = tensors_by_name(table, shapes)
  problems = [*found.problems, *_problems(expected, found.tensors, found.lost)]
  if problems:
    raise ValueError(
      f"The weights in {folder} are not those of its {CONFIG_FILE} ({len(problems)} differences):\n  "
      + "\n  ".join(problems)
    )
  dtype = _main_dtype(found.tensors[name] for name in expected)
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
  return CheckpointFolder(config, tuple(table), shapes, found.tensors)


def tensors_by_name(table: Sequence[Tensor], shapes: Params) -> dict[str, Tensor]:
  """Returns name in the files -> tensor, for every layer, in the order of the table."""
  flat = flatten(shapes)
  return {name: tensor for tensor in table for name in tensor.names(flat[tensor.paths[0]].shape)}


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
  problems += [
    f"wrong dtype: {name} {found[name].dtype}, weights are {', '.join(DTYPES)}"
    for name in common
    if found[name].dtype not in DTYPES
  ]
  return problems


def _main_dtype(stored: Iterable[StoredTensor]) -> np.dtype:
  """Returns the type of most values."""
  values = collections.Counter()
  for tensor in stored:
    values[tensor.dtype] += math.prod(tensor.shape)
  return DTYPES[values.most_common(1)[0][0]]


def stream_tensors(
  table: Sequence[Tensor],
  leaf_at: Callable[[str], np.ndarray | jax.Array | Params],
  dtype: np.dtype,
) -> Iterator[np.ndarray]:
  """Yields the tensors of the table, layer by layer, in `dtype`."""
  for tensor in table:
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
