"""Reads and writes folders of an XLM-RoBERTa encoder with BGE-M3's heads.

  config.json
  model.safetensors (or in parts), or pytorch_model.bin      the encoder
  heads.safetensors, or sparse_linear.pt and colbert_linear.pt    the heads

BGE-M3 is published with the files on the right. `write_encoder` writes those on the left; both files of weights then
load without this package, the first by `XLMRobertaModel.from_pretrained(folder, add_pooling_layer=False)`.
"""

import itertools
import json
import re

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jaxtyping import DTypeLike

from spatial_vlm.huggingface.checkpoint_folder import (
  CheckpointFolder,
  match_tensors,
  stream_tensors,
  tensors_by_name,
)
from spatial_vlm.huggingface.encoder_table import encoder_tensors, head_tensors
from spatial_vlm.huggingface.folder import CONFIG_FILE, read_config, reading
from spatial_vlm.huggingface.safetensors_folder import (
  INDEX_FILE,
  WEIGHTS_FILE,
  Inventory,
  StoredTensor,
  TensorPlan,
  inventory,
  read_header,
  write_file,
  write_folder,
)
from spatial_vlm.huggingface.torch_zip import torch_inventory
from spatial_vlm.huggingface.weights import MAX_FILE_BYTES
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig, init_encoder
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.types import Params

HEADS_FILE = "heads.safetensors"
TORCH_FILE = "pytorch_model.bin"
TORCH_HEADS = ("sparse_linear", "colbert_linear")
_PREFIX = re.compile(r"^(roberta|model)\.")
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*|lm_head\..*")
"""Tensors of the encoder's files that no embedding needs."""


def read_encoder_config(folder: epath.PathLike) -> XlmRobertaConfig:
  """Reads config.json of an XLM-RoBERTa folder, local or remote (gs://).

  Raises:
    FileNotFoundError: config.json is missing.
    ValueError: it does not describe a supported XLM-RoBERTa.
  """
  config = read_config(folder, "an XLM-RoBERTa")
  with reading(epath.Path(folder) / CONFIG_FILE):
    return XlmRobertaConfig.from_huggingface(config)


def open_encoder(folder: epath.PathLike, config: XlmRobertaConfig) -> CheckpointFolder:
  """Checks the headers of an encoder's files against its `config`; `read` of the result reads the weights.

  Raises:
    FileNotFoundError: the weights of the encoder or of its heads are missing.
    ValueError: files are damaged, a pickle names more than tensors, or tensors are missing, unknown, or of another
      shape or type (one error lists all differences).
  """
  folder = epath.Path(folder)
  encoder, heads = _encoder_inventory(folder), _head_inventory(folder)
  found = Inventory(encoder.tensors | heads, encoder.problems, encoder.lost)
  table = [*encoder_tensors(config), *head_tensors(config)]
  return match_tensors(folder, config, table, encoder_shapes(config), found)


def encoder_shapes(config: XlmRobertaConfig, dtype: jnp.dtype = jnp.float32) -> Params:
  """Returns the shapes of the parameters (`jax.ShapeDtypeStruct`) without allocating them."""
  return jax.eval_shape(lambda: init_encoder(config, jax.random.key(0), dtype))


def write_encoder(
  folder: epath.PathLike, config: XlmRobertaConfig, params: Params, dtype: DTypeLike = np.float32
) -> None:
  """Writes config.json, model.safetensors and heads.safetensors; tokenizer files are the caller's.

  Args:
    params: arrays in this process's memory, as `init_encoder` makes them.
  """
  folder, dtype, leaf_at = epath.Path(folder), np.dtype(dtype), flatten(params).__getitem__
  folder.mkdir(parents=True, exist_ok=True)
  description = {**config.to_huggingface(), "dtype": dtype.name}
  (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
  table, heads = encoder_tensors(config), head_tensors(config)
  arrays = stream_tensors([*table, *heads], leaf_at, dtype)
  plan = _plan(config, table, dtype)
  write_folder(folder, plan, itertools.islice(arrays, len(plan)), MAX_FILE_BYTES)
  with (folder / HEADS_FILE).open("wb") as file:
    write_file(file, _plan(config, heads, dtype), arrays)


def _plan(config: XlmRobertaConfig, table, dtype: np.dtype) -> list[TensorPlan]:
  named = tensors_by_name(table, encoder_shapes(config))
  return [TensorPlan(name, tensor.shape, dtype) for name, tensor in named.items()]


def _encoder_inventory(folder: epath.Path) -> Inventory:
  """Returns the tensors of the encoder, under the names of `XLMRobertaModel`."""
  if (folder / INDEX_FILE).is_file() or (folder / WEIGHTS_FILE).is_file():
    found = inventory(folder)
  elif (folder / TORCH_FILE).is_file():
    found = Inventory(torch_inventory(folder / TORCH_FILE), [], set())
  else:
    raise FileNotFoundError(
      f"{folder} has neither {WEIGHTS_FILE} nor {TORCH_FILE}; give the folder of an XLM-RoBERTa with its weights"
    )
  names = {name: _PREFIX.sub("", name) for name in found.tensors}
  if len(set(names.values())) < len(names):  # with and without a prefix: both are reported
    names = {name: name for name in names}
  tensors = {names[n]: tensor for n, tensor in found.tensors.items() if not _is_unused(names[n])}
  return Inventory(tensors, found.problems, {_PREFIX.sub("", name) for name in found.lost})


def _is_unused(name: str) -> bool:
  return _UNUSED.fullmatch(name) is not None


def _head_inventory(folder: epath.Path) -> dict[str, StoredTensor]:
  if (folder / HEADS_FILE).is_file():
    return read_header(folder / HEADS_FILE)
  missing = [f"{head}.pt" for head in TORCH_HEADS if not (folder / f"{head}.pt").is_file()]
  if missing:
    raise FileNotFoundError(
      f"{folder} has no {HEADS_FILE}, and lacks {', '.join(missing)}; BGE-M3 is published with these files, other"
      " encoders need heads of their own"
    )
  return {
    f"{head}.{name}": tensor
    for head in TORCH_HEADS
    for name, tensor in torch_inventory(folder / f"{head}.pt").items()
  }
