"""Hugging Face checkpoint folders to and from stacked parameters.

One table, `tensors(config)`, gives every tensor's name, shape and place. Safetensors only: nothing is unpickled.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.types import Params

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


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


def read_checkpoint(folder: epath.PathLike) -> tuple[ModelConfig, Params]:
  """Reads config.json and the safetensors of a Hugging Face Qwen3-VL folder, local or remote (gs://).

  Returns:
    the configuration, and parameters as NumPy arrays in the dtype of the file.

  Raises:
    FileNotFoundError: no config.json, or no safetensors.
    ValueError: the configuration is not a dense Qwen3-VL, or tensors are missing, unknown or of another shape (all of
      them are listed).
  """
  folder = epath.Path(folder)
  if not (folder / CONFIG_FILE).is_file():
    raise FileNotFoundError(
      f"{folder} has no {CONFIG_FILE}; give a Hugging Face checkpoint folder."
    )
  config = ModelConfig.from_huggingface(json.loads((folder / CONFIG_FILE).read_text()))
  shapes = abstract_params(config)
  params: Params = {}
  with tempfile.TemporaryDirectory() as scratch:
    where = _opened(_weight_files(folder), scratch)
    _check_names_and_shapes(folder, config, shapes, where)
    for tensor in tensors(config):
      leaves = [_leaf(shapes, path) for path in tensor.paths]
      for path, array in zip(tensor.paths, _read(tensor, leaves, where), strict=True):
        _set(params, path, array)
  return config, params


def write_checkpoint(folder: epath.PathLike, config: ModelConfig, params: Params) -> None:
  """Writes config.json and model.safetensors, which transformers' `from_pretrained` loads.

  A tied head is not stored twice. Files of the same names are overwritten. `folder` may be remote (gs://).
  """
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  checkpoint = {
    name: np.ascontiguousarray(array)
    for tensor in tensors(config)
    for name, array in _written(tensor, [np.asarray(_leaf(params, path)) for path in tensor.paths])
  }
  dtype = checkpoint["model.language_model.embed_tokens.weight"].dtype.name
  description = {**config.to_huggingface(), "dtype": dtype}
  (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
  # "pt" is the layout's name, required by from_pretrained; no torch is involved
  (folder / INDEX_FILE).unlink(missing_ok=True)  # of another checkpoint, in several files
  (folder / WEIGHTS_FILE).write_bytes(save(checkpoint, metadata={"format": "pt"}))


def abstract_params(config: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Shapes of the parameters (`jax.ShapeDtypeStruct`), without making any."""
  return jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))


def _weight_files(folder: epath.Path) -> list[epath.Path]:
  if (folder / INDEX_FILE).is_file():
    names = sorted(set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()))
  else:
    names = [WEIGHTS_FILE]
  absent = [name for name in names if not (folder / name).is_file()]
  if not absent:
    return [folder / name for name in names]
  message = f"{folder} lacks {', '.join(absent)}."
  if pickled := sorted(
    path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)
  ):
    message += (
      f" It has {', '.join(pickled)}, but pickled weights can run code when opened and are never read here: load the"
      " folder with transformers in a place you trust and save it again with save_pretrained, which writes safetensors."
    )
  raise FileNotFoundError(message)


def _opened(paths: list[epath.Path], scratch: str) -> dict[str, safe_open]:
  """For each tensor's name the file that holds it. Files are mapped into memory; remote ones are copied first."""
  where = {}
  for path in paths:
    local = os.fspath(path)
    if "://" in local:
      local = os.fspath(path.copy(epath.Path(scratch) / path.name))
    try:
      file = safe_open(local, framework="np")
    except SafetensorError as error:
      raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    where |= dict.fromkeys(file.keys(), file)
  return where


def _names(tensor: Tensor, leaf: jax.ShapeDtypeStruct | np.ndarray) -> Iterator[str]:
  if "{}" not in tensor.name:
    return iter([tensor.name])
  return (tensor.name.format(layer) for layer in range(leaf.shape[0]))


def _check_names_and_shapes(
  folder: epath.Path, config: ModelConfig, shapes: Params, where: Mapping[str, safe_open]
) -> None:
  expected = {
    name: tensor.shape
    for tensor in tensors(config)
    for name in _names(tensor, _leaf(shapes, tensor.paths[0]))
  }
  found = {name: tuple(file.get_slice(name).get_shape()) for name, file in where.items()}
  problems = [
    f"missing: {name} {list(expected[name])}" for name in sorted(expected.keys() - found.keys())
  ]
  problems += [
    f"not read: {name} {list(found[name])}" for name in sorted(found.keys() - expected.keys())
  ]
  problems += [
    f"wrong shape: {name} {list(found[name])}, config.json makes it {list(expected[name])}"
    for name in sorted(expected.keys() & found.keys())
    if expected[name] != found[name]
  ]
  if problems:
    raise ValueError(
      f"The weights in {folder} are not those of its {CONFIG_FILE} ({len(problems)} differences):\n  "
      + "\n  ".join(problems)
    )


def _read(
  tensor: Tensor, leaves: list[jax.ShapeDtypeStruct], where: Mapping[str, safe_open]
) -> list[np.ndarray]:
  """The tensor's leaves, stacked over the layers."""
  stacked = "{}" in tensor.name
  layers = []
  for name in _names(tensor, leaves[0]):
    parts = np.split(where[name].get_tensor(name), len(leaves))
    layers.append([part.reshape(len(part), -1).T if tensor.is_matrix else part for part in parts])
  parts_of_layers = zip(*layers, strict=True)
  return [
    (np.stack(parts) if stacked else parts[0]).reshape(leaf.shape)
    for parts, leaf in zip(parts_of_layers, leaves, strict=True)
  ]


def _written(tensor: Tensor, leaves: list[np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
  """Names and tensors of the checkpoint, the inverse of `_read`."""
  stacks = leaves if "{}" in tensor.name else [leaf[None] for leaf in leaves]
  width_out = tensor.shape[0] // len(leaves)
  for layer, name in enumerate(_names(tensor, stacks[0])):
    parts = [stack[layer] for stack in stacks]
    if tensor.is_matrix:
      parts = [part.reshape(-1, width_out).T for part in parts]
    else:
      parts = [part.reshape(width_out, -1) for part in parts]
    yield name, np.concatenate(parts).reshape(tensor.shape)


def _leaf(params: Params, path: str) -> Any:
  for name in path.split("/"):
    params = params[name]
  return params


def _set(params: Params, path: str, array: np.ndarray) -> None:
  *parents, name = path.split("/")
  for parent in parents:
    params = params.setdefault(parent, {})
  params[name] = array
