"""Hugging Face checkpoint folders to and from stacked parameters.

Weights go tensor by tensor between the files and the slices of the stacks that this process's devices hold: no second
copy of the model is ever made.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, DTypeLike

from spatial_vlm.huggingface.safetensors_folder import (
  DTYPES,
  Planned,
  Stored,
  inventory,
  row_blocks,
  write_folder,
)
from spatial_vlm.huggingface.tensor_slices import Index, bounds_of, box_of
from spatial_vlm.huggingface.tensor_table import Tensor, places, tensors
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.parameters.int8 import source_of
from spatial_vlm.parameters.lora import effective
from spatial_vlm.types import Params

CONFIG_FILE = "config.json"
MAX_FILE_BYTES = 5 * 10**9
"""As transformers cuts."""


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
  """A folder whose headers were found to fit its config.json; no weight is read yet."""

  config: ModelConfig
  shapes: Params
  """Of all parameters, in the types of the files (`jax.ShapeDtypeStruct`)."""
  stored: Mapping[str, Stored]

  def read(self, wanted: Params) -> Params:
    """The parameters as `wanted` describes them, a tree of `jax.ShapeDtypeStruct` with the shapes of `shapes`.

    A leaf with a sharding becomes an array of the whole mesh: this process reads what its own devices hold of it, once.
    One without becomes a NumPy array. Values are cast to the leaf's dtype. A kernel may be wanted in int8 (see
    `parameters.int8.storage_shapes`): it is quantized on the host, by whole rows, whatever part is held here, and its
    files are read twice, once for the scales. Held beside the result: one leaf's slices, and a block of a file.
    """
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: self._leaf(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
      wanted,
    )

  def _leaf(self, path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray | jax.Array:
    if leaf.sharding is None:
      return self.slices(path, leaf, [(slice(None),) * len(leaf.shape)])[0]
    where = leaf.sharding.addressable_devices_indices_map(leaf.shape)
    return jax.make_array_from_single_device_arrays(
      leaf.shape, leaf.sharding, self.on_devices(path, leaf, where)
    )

  def on_devices(
    self, path: str, leaf: jax.ShapeDtypeStruct, where: Mapping[jax.Device, Index]
  ) -> list[jax.Array]:
    """The part of the parameter that each device is to hold; devices that hold the same share one reading."""
    devices_of = collections.defaultdict(list)
    for device, index in where.items():
      devices_of[bounds_of(index, leaf.shape)].append(device)
    indices = [tuple(slice(*bounds) for bounds in key) for key in devices_of]
    slices = self.slices(path, leaf, indices)
    slices.reverse()
    placed = {}
    for devices in devices_of.values():
      part = slices.pop()  # so that nothing keeps it once it is on its devices
      placed |= {device: jax.device_put(part, device) for device in devices}
    # what is on its way is held on the host
    return jax.block_until_ready([placed[device] for device in where])

  def slices(
    self, path: str, leaf: jax.ShapeDtypeStruct, indices: Sequence[Index]
  ) -> list[np.ndarray]:
    """Parts of the parameter at `path` ("text/embed/embedding"), cast to `leaf.dtype`; each file range is read once."""
    source, made = source_of(path)
    tensor, part = places(self.config)[source]
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
        block = made(block)
        for box, matrix in takers:
          box.take(first, block, matrix)
    return result


def open_checkpoint(folder: epath.PathLike) -> CheckpointFolder:
  """Checks config.json and all headers of a Hugging Face Qwen3-VL folder, local or remote (gs://).

  Raises:
    FileNotFoundError: no config.json, or no safetensors.
    ValueError: the configuration is not a dense Qwen3-VL; or files are missing, damaged, or lie outside the folder, or
      tensors are missing, unknown, or of another shape or type: everything is listed in one error.
  """
  folder = epath.Path(folder)
  if not (folder / CONFIG_FILE).is_file():
    raise FileNotFoundError(
      f"{folder} has no {CONFIG_FILE}; give a Hugging Face checkpoint folder."
    )
  config = ModelConfig.from_huggingface(json.loads((folder / CONFIG_FILE).read_text()))
  found = inventory(folder)
  shapes = abstract_params(config)
  expected = {
    name: tensor
    for tensor in tensors(config)
    for name in tensor.names(_at(shapes, tensor.paths[0]).shape)
  }
  problems = [*found.problems, *_problems(expected, found.tensors, found.lost)]
  if problems:
    raise ValueError(
      f"The weights in {folder} are not those of its {CONFIG_FILE} ({len(problems)} differences):\n  "
      + "\n  ".join(problems)
    )
  return CheckpointFolder(config, _in_stored_dtypes(config, shapes, found.tensors), found.tensors)


def _problems(
  expected: Mapping[str, Tensor], found: Mapping[str, Stored], lost: set[str]
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


def _in_stored_dtypes(config: ModelConfig, shapes: Params, stored: Mapping[str, Stored]) -> Params:
  result: Params = {}
  for path, (tensor, _) in places(config).items():
    leaf = _at(shapes, path)
    dtype = DTYPES[stored[next(tensor.names(leaf.shape))].dtype]
    _set(result, path, jax.ShapeDtypeStruct(leaf.shape, dtype))
  return result


def read_checkpoint(folder: epath.PathLike) -> tuple[ModelConfig, Params]:
  """Configuration of a folder, and its parameters as NumPy arrays in the dtype of the file.

  Raises what `open_checkpoint` raises.
  """
  checkpoint = open_checkpoint(folder)
  return checkpoint.config, checkpoint.read(checkpoint.shapes)


def write_checkpoint(
  folder: epath.PathLike,
  config: ModelConfig,
  params: Params,
  dtype: DTypeLike | None = None,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes config.json and safetensors, which transformers' `from_pretrained` loads.

  `params` hold NumPy arrays or arrays of any sharding, also over several processes: all of them call this, the first
  one writes. `dtype` is by default that of the parameters. See `stream_checkpoint`.
  """
  table = _at(params, "text/embed/embedding")
  dtype = table.dtype if dtype is None else dtype
  stream_checkpoint(folder, config, functools.partial(_at, params), dtype, max_file_bytes)


def stream_checkpoint(
  folder: epath.PathLike,
  config: ModelConfig,
  leaf_at: Callable[[str], np.ndarray | jax.Array | Params],
  dtype: DTypeLike,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """`write_checkpoint` of parameters that are made one after the other: `leaf_at(path)` gives the array at a path, or
  the arrays that a kernel is made of (`parameters.lora.parts_at`), layer by layer.

  One tensor at a time is on the host. A tied head is not stored twice. Weights that were in `folder`, which may be
  remote (gs://), are replaced.
  """
  folder, dtype = epath.Path(folder), np.dtype(dtype)
  arrays = _streamed(config, leaf_at, dtype)
  if jax.process_index() == 0:
    write_tensors(folder, config, arrays, dtype, max_file_bytes)
  collections.deque(arrays, maxlen=0)  # the other processes take part in gathering
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"written {folder}")


def write_tensors(
  folder: epath.Path,
  config: ModelConfig,
  arrays: Iterable[np.ndarray],
  dtype: np.dtype,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes config.json and the tensors of `planned(config, dtype)`, in their order."""
  folder.mkdir(parents=True, exist_ok=True)
  description = {**config.to_huggingface(), "dtype": dtype.name}
  (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
  write_folder(folder, planned(config, dtype), arrays, max_file_bytes)


def planned(config: ModelConfig, dtype: np.dtype) -> list[Planned]:
  """The files' tensors one by one, layers in their order."""
  shapes = abstract_params(config)
  return [
    Planned(name, tensor.shape, dtype)
    for tensor in tensors(config)
    for name in tensor.names(_at(shapes, tensor.paths[0]).shape)
  ]


def _streamed(
  config: ModelConfig, leaf_at: Callable[[str], np.ndarray | jax.Array | Params], dtype: np.dtype
) -> Iterator[np.ndarray]:
  """The tensors of the checkpoint, in the order of the table."""
  for tensor in tensors(config):
    leaves = [leaf_at(path) for path in tensor.paths]
    stacked = jax.tree.leaves(leaves)[0]
    layers = range(len(stacked)) if tensor.is_stacked else [None]
    for layer in layers:
      yield _joined(tensor, [_on_host(leaf, layer, dtype) for leaf in leaves])
    del leaves, stacked  # before the next ones are made


def _joined(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
  """One tensor of the checkpoint from its parameters."""
  count = tensor.shape[0] // len(parts)
  if tensor.is_matrix:
    rows = [part.reshape(-1, count).T for part in parts]
  else:
    rows = [part.reshape(count, -1) for part in parts]
  return (rows[0] if len(rows) == 1 else np.concatenate(rows)).reshape(tensor.shape)


def _on_host(
  leaf: np.ndarray | jax.Array | Params, layer: int | None, dtype: np.dtype
) -> np.ndarray:
  """A layer of a stack (or the whole array), cast, in the memory of this process wherever it lies."""
  if isinstance(leaf, np.ndarray):
    return (leaf if layer is None else leaf[layer]).astype(dtype, copy=False)
  # a new array, since an array keeps the host's copy that was once made of it
  array = jax.tree.leaves(leaf)[0]
  everywhere = (
    None if array.is_fully_addressable else NamedSharding(array.sharding.mesh, PartitionSpec())
  )
  return np.asarray(_picker(dtype, everywhere)(leaf, layer))


@functools.cache
def _picker(dtype: np.dtype, sharding: NamedSharding | None) -> Callable[..., jax.Array]:
  def pick(leaf, layer: ArrayLike | None):
    if layer is not None:
      leaf = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, layer, keepdims=False), leaf)
    kernel = effective(leaf)["kernel"] if isinstance(leaf, dict) else leaf
    return kernel.astype(dtype)

  return jax.jit(pick, out_shardings=sharding)


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Shapes of the parameters (`jax.ShapeDtypeStruct`), without making any."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def _at(params: Params, path: str) -> Any:
  return functools.reduce(lambda tree, name: tree[name], path.split("/"), params)


def _set(params: Params, path: str, leaf: Any) -> None:
  *parents, name = path.split("/")
  for parent in parents:
    params = params.setdefault(parent, {})
  params[name] = leaf
