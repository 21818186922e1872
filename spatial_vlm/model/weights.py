"""Hugging Face checkpoint folders to and from stacked parameters.

One table, `tensors(config)`, gives every tensor's name, shape and place. Weights go tensor by tensor between the files
and the slices of the stacks that this process's devices hold: no second copy of the model is ever made.
"""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import ArrayLike, DTypeLike, Int

from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.model.safetensors_folder import (
  DTYPES,
  Planned,
  Stored,
  inventory,
  row_blocks,
  write_folder,
)
from spatial_vlm.types import Params

CONFIG_FILE = "config.json"
MAX_FILE_BYTES = 5 * 10**9
"""As transformers cuts."""

Index = tuple[slice, ...]
"""Part of an array, as `Sharding.devices_indices_map` gives it: steps of 1."""


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of the checkpoint and the leaves that hold it here.

  A matrix is [out, in] in the checkpoint and [in, out] here, where in and out may be several axes (heads, a patch's
  channels, frames, rows and columns); everything else differs in shape at most.
  """

  name: str
  """`{}` stands for the number of the layer: the leaves are stacks."""
  shape: tuple[int, ...]
  paths: tuple[str, ...]
  """More than one: the tensor is theirs joined on the first axis (fused q, k, v)."""
  is_matrix: bool = False


def tensors(config: ModelConfig) -> list[Tensor]:
  """Every tensor of the checkpoint, named as by transformers 5.23."""
  vision, text = config.vision, config.text
  D, F = vision.hidden_size, vision.intermediate_size
  patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
  block, ours = "model.visual.blocks.{}.", "vision/blocks/"
  qkv = ("attention/q_proj/", "attention/k_proj/", "attention/v_proj/")
  table = [
    *_affine("model.visual.patch_embed.proj.", (D, *patch), "vision/patch_embed/proj/"),
    Tensor(
      "model.visual.pos_embed.weight",
      (vision.num_position_embeddings, D),
      ("vision/patch_embed/positions/embedding",),
    ),
    *_layer_norm(block + "norm1.", D, ours + "norm1/"),
    *_layer_norm(block + "norm2.", D, ours + "norm2/"),
    *_affine(block + "attn.qkv.", (3 * D, D), *(ours + path for path in qkv)),
    *_affine(block + "attn.proj.", (D, D), ours + "attention/out_proj/"),
    *_affine(block + "mlp.linear_fc1.", (F, D), ours + "mlp/fc1/"),
    *_affine(block + "mlp.linear_fc2.", (D, F), ours + "mlp/fc2/"),
    *_merger(config, "model.visual.merger.", D, "vision/merger/"),
  ]
  if vision.deepstack_visual_indexes:
    table += _merger(
      config,
      "model.visual.deepstack_merger_list.{}.",
      D * vision.merge_unit,
      "vision/deepstack_mergers/",
    )
  D, F, H = text.hidden_size, text.intermediate_size, text.head_dim
  N, K = text.num_attention_heads * H, text.num_key_value_heads * H
  model, layer, ours = "model.language_model.", "model.language_model.layers.{}.", "text/layers/"
  table += [
    Tensor(model + "embed_tokens.weight", (text.vocab_size, D), ("text/embed/embedding",)),
    *_scale(layer + "input_layernorm.", D, ours + "input_norm/"),
    *_matrix(layer + "self_attn.q_proj.", (N, D), ours + "attention/q_proj/"),
    *_matrix(layer + "self_attn.k_proj.", (K, D), ours + "attention/k_proj/"),
    *_matrix(layer + "self_attn.v_proj.", (K, D), ours + "attention/v_proj/"),
    *_matrix(layer + "self_attn.o_proj.", (D, N), ours + "attention/o_proj/"),
    *_scale(layer + "self_attn.q_norm.", H, ours + "attention/q_norm/"),
    *_scale(layer + "self_attn.k_norm.", H, ours + "attention/k_norm/"),
    *_scale(layer + "post_attention_layernorm.", D, ours + "post_attention_norm/"),
    *_matrix(layer + "mlp.gate_proj.", (F, D), ours + "mlp/gate_proj/"),
    *_matrix(layer + "mlp.up_proj.", (F, D), ours + "mlp/up_proj/"),
    *_matrix(layer + "mlp.down_proj.", (D, F), ours + "mlp/down_proj/"),
    *_scale(model + "norm.", D, "text/final_norm/"),
  ]
  if not config.tie_word_embeddings:
    table.append(Tensor("lm_head.weight", (text.vocab_size, D), ("head/embedding",)))
  return table


def _matrix(name: str, shape: tuple[int, ...], *ours: str) -> list[Tensor]:
  return [Tensor(name + "weight", shape, tuple(path + "kernel" for path in ours), is_matrix=True)]


def _affine(name: str, shape: tuple[int, ...], *ours: str) -> list[Tensor]:
  bias = Tensor(name + "bias", shape[:1], tuple(path + "bias" for path in ours))
  return [*_matrix(name, shape, *ours), bias]


def _scale(name: str, width: int, ours: str) -> list[Tensor]:
  return [Tensor(name + "weight", (width,), (ours + "scale",))]


def _layer_norm(name: str, width: int, ours: str) -> list[Tensor]:
  return [*_scale(name, width, ours), Tensor(name + "bias", (width,), (ours + "bias",))]


def _merger(config: ModelConfig, name: str, norm_width: int, ours: str) -> list[Tensor]:
  merged = config.vision.hidden_size * config.vision.merge_unit
  return [
    *_layer_norm(name + "norm.", norm_width, ours + "norm/"),
    *_affine(name + "linear_fc1.", (merged, merged), ours + "fc1/"),
    *_affine(name + "linear_fc2.", (config.vision.out_hidden_size, merged), ours + "fc2/"),
  ]


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
    One without becomes a NumPy array. Values are cast to the leaf's dtype. Held beside the result: one leaf's slices,
    and a block of a file.
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
      devices_of[_bounds(index, leaf.shape)].append(device)
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
    tensor, part = _table(self.config)[path]
    boxes = [_box(tensor, part, leaf.shape, index) for index in indices]
    result = [np.empty(box.shape, leaf.dtype) for box in boxes]
    rows = functools.reduce(np.union1d, [box.rows for box in boxes])
    matrices = [box.as_matrices(array) for box, array in zip(boxes, result, strict=True)]
    for layer, name in enumerate(_names(tensor, leaf)):
      takers = [
        (box, matrix[layer - box.layers.start])
        for box, matrix in zip(boxes, matrices, strict=True)
        if box.layers.start <= layer < box.layers.stop
      ]
      if not takers:
        continue
      for first, block in row_blocks(self.stored[name], rows):
        for box, matrix in takers:
          box.take(first, block, matrix)
    return result


class _Box(NamedTuple):
  """Part of a parameter, as layers, rows and columns of its tensors in the files."""

  shape: tuple[int, ...]
  """Of the part."""
  layers: slice
  rows: Int[np.ndarray, "rows"]
  columns: Int[np.ndarray, "columns"]
  transposed: bool
  """The parameter has columns before rows."""

  def as_matrices(self, part: np.ndarray) -> np.ndarray:
    """A view of the part, [layers, rows, columns] whatever the order of its axes."""
    layers = self.layers.stop - self.layers.start
    if self.transposed:
      return part.reshape(layers, len(self.columns), len(self.rows)).swapaxes(1, 2)
    return part.reshape(layers, len(self.rows), len(self.columns))

  def take(self, first: int, block: np.ndarray, matrix: np.ndarray) -> None:
    """Copies what the part has of a block of rows, the first of which is row `first`, into one of its matrices."""
    begin, end = np.searchsorted(self.rows, (first, first + len(block)))
    if begin == end:
      return
    found = block[_as_slice(self.rows[begin:end] - first)][:, _as_slice(self.columns)]
    if found.dtype == matrix.dtype:  # bits are moved faster than bfloat16
      bits = f"u{found.dtype.itemsize}"
      found, matrix = found.view(bits), matrix.view(bits)
    matrix[begin:end] = found


def _box(tensor: Tensor, part: int, shape: tuple[int, ...], index: Index) -> _Box:
  """Where the slice `index` of a parameter of `shape`, part number `part` of its tensor, lies in the files."""
  sizes, bounds = list(shape), list(_bounds(index, shape))
  layers = slice(*bounds.pop(0)) if "{}" in tensor.name else slice(0, 1)
  sizes = sizes[len(sizes) - len(bounds) :]
  count = tensor.shape[0] // len(tensor.paths)
  axes = _row_axes(sizes, count, tensor.is_matrix)
  rest = [axis for axis in range(len(sizes)) if axis not in axes]
  return _Box(
    shape=tuple(stop - start for start, stop in _bounds(index, shape)),
    layers=layers,
    rows=part * count + _numbers(sizes, bounds, axes),
    columns=_numbers(sizes, bounds, rest),
    transposed=tensor.is_matrix,
  )


def _row_axes(sizes: list[int], count: int, transposed: bool) -> list[int]:
  """The last axes (of a matrix, else the first) that together have `count` entries: the rows of the file."""
  order = list(range(len(sizes)))[:: -1 if transposed else 1]
  used = next(
    n for n in range(1, len(order) + 1) if math.prod(sizes[i] for i in order[:n]) == count
  )
  return sorted(order[:used])


def _numbers(
  sizes: list[int], bounds: list[tuple[int, int]], axes: list[int]
) -> Int[np.ndarray, "n"]:
  """Places, in C order over `axes`, of the entries inside the bounds."""
  numbers = np.arange(math.prod(sizes[axis] for axis in axes)).reshape([sizes[a] for a in axes])
  return numbers[tuple(slice(*bounds[axis]) for axis in axes)].ravel()


def _as_slice(numbers: Int[np.ndarray, "n"]) -> slice | np.ndarray:
  """Ascending numbers as a slice if they have no gap, since a slice copies nothing."""
  if numbers[-1] - numbers[0] == len(numbers) - 1:
    return slice(numbers[0], numbers[-1] + 1)
  return numbers


def _bounds(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


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
    for name in _names(tensor, _at(shapes, tensor.paths[0]))
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
  for path, (tensor, _) in _table(config).items():
    leaf = _at(shapes, path)
    dtype = DTYPES[stored[next(_names(tensor, leaf))].dtype]
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
  leaf_at: Callable[[str], np.ndarray | jax.Array],
  dtype: DTypeLike,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """`write_checkpoint` of parameters that are made one after the other: `leaf_at(path)` gives the array at a path.

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
    for name in _names(tensor, _at(shapes, tensor.paths[0]))
  ]


def _streamed(
  config: ModelConfig, leaf_at: Callable[[str], np.ndarray | jax.Array], dtype: np.dtype
) -> Iterator[np.ndarray]:
  """The tensors of the checkpoint, in the order of the table."""
  for tensor in tensors(config):
    leaves = [leaf_at(path) for path in tensor.paths]
    layers = range(leaves[0].shape[0]) if "{}" in tensor.name else [None]
    for layer in layers:
      yield _joined(tensor, [_on_host(leaf, layer, dtype) for leaf in leaves])
    del leaves  # before the next ones are made


def _joined(tensor: Tensor, parts: list[np.ndarray]) -> np.ndarray:
  """One tensor of the checkpoint from its parameters."""
  count = tensor.shape[0] // len(parts)
  if tensor.is_matrix:
    rows = [part.reshape(-1, count).T for part in parts]
  else:
    rows = [part.reshape(count, -1) for part in parts]
  return (rows[0] if len(rows) == 1 else np.concatenate(rows)).reshape(tensor.shape)


def _on_host(leaf: np.ndarray | jax.Array, layer: int | None, dtype: np.dtype) -> np.ndarray:
  """A layer of a stack (or the whole array), cast, in the memory of this process wherever it lies."""
  if isinstance(leaf, np.ndarray):
    return (leaf if layer is None else leaf[layer]).astype(dtype, copy=False)
  # a new array, since an array keeps the host's copy that was once made of it
  everywhere = (
    None if leaf.is_fully_addressable else NamedSharding(leaf.sharding.mesh, PartitionSpec())
  )
  return np.asarray(_picker(dtype, everywhere)(leaf, layer))


@functools.cache
def _picker(dtype: np.dtype, sharding: NamedSharding | None) -> Callable[..., jax.Array]:
  def pick(leaf, layer: ArrayLike | None):
    if layer is not None:
      leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
    return leaf.astype(dtype)

  return jax.jit(pick, out_shardings=sharding)


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Shapes of the parameters (`jax.ShapeDtypeStruct`), without making any."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


@functools.cache
def _table(config: ModelConfig) -> Mapping[str, tuple[Tensor, int]]:
  """Path of each parameter -> its tensor, and which part of it."""
  return {
    path: (tensor, part) for tensor in tensors(config) for part, path in enumerate(tensor.paths)
  }


def _names(tensor: Tensor, leaf: Any) -> Iterator[str]:
  """Of the tensor in each layer of `leaf`, a stack that holds it."""
  if "{}" not in tensor.name:
    return iter([tensor.name])
  return (tensor.name.format(layer) for layer in range(leaf.shape[0]))


def _at(params: Params, path: str) -> Any:
  return functools.reduce(lambda tree, name: tree[name], path.split("/"), params)


def _set(params: Params, path: str, leaf: Any) -> None:
  *parents, name = path.split("/")
  for parent in parents:
    params = params.setdefault(parent, {})
  params[name] = leaf
