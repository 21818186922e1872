"""Writes a policy's weights for a vLLM server, and compares the server's checksums with those of what was written.

vLLM fuses tensors of a checkpoint: queries, keys and values of a text layer are one matrix, and so are gate and up of
its MLP. It pads the rows of the vocabulary (model_executor/models/qwen3_vl.py, layers/vocab_parallel_embedding.py).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.huggingface.checkpoint_folder import stream_tensors
from spatial_vlm.huggingface.tensor_table import EMBEDDING, HEAD, tensors
from spatial_vlm.huggingface.weights import plan_tensors, write_tensors
from spatial_vlm.model.config import ModelConfig

VOCABULARY_MULTIPLE = 64
"""vLLM pads the rows of the embedding and of the head to a multiple of it, with zeros."""

_PREFIXES = (
  ("model.visual.", "visual."),
  ("model.language_model.", "language_model.model."),
  ("lm_head.", "language_model.lm_head."),
)
_FUSED = re.compile(r"\.self_attn\.[qkv]_proj\.|\.mlp\.(?:gate|up)_proj\.")
_RANKS = re.compile(r"^(?:[a-z]+\d+:)+")


def served_name(name: str) -> str:
  """Returns vLLM's name of the tensor that a tensor of the checkpoint becomes a part of.

  >>> served_name("model.language_model.layers.3.self_attn.k_proj.weight")
  'language_model.model.layers.3.self_attn.qkv_proj.weight'
  """
  prefix, theirs = next(pair for pair in _PREFIXES if name.startswith(pair[0]))
  name = theirs + name.removeprefix(prefix)
  return _FUSED.sub(
    lambda found: ".self_attn.qkv_proj." if "attn" in found[0] else ".mlp.gate_up_proj.", name
  )


class Checksums:
  """SHA-256 of each tensor that a server should hold, made while the tensors are written.

  Parts of a fused tensor are added in the order of the checkpoint's table, which is that of vLLM's rows.
  """

  def __init__(self):
    self._digests: dict[str, Any] = {}

  def add(self, name: str, tensor: np.ndarray) -> None:
    """Adds a tensor of the checkpoint."""
    digest = self._digests.setdefault(served_name(name), hashlib.sha256())
    digest.update(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
    if name in (EMBEDDING, HEAD):
      missing = -tensor.shape[0] % VOCABULARY_MULTIPLE
      digest.update(bytes(missing * tensor.shape[1] * tensor.dtype.itemsize))

  def result(self) -> dict[str, str]:
    """Returns vLLM's name → hexadecimal digest."""
    return {name: digest.hexdigest() for name, digest in self._digests.items()}


def write_weights(
  folder: epath.Path | None,
  model: ModelConfig,
  leaf_at: Callable[[str], Any],
  dtype: np.dtype,
) -> dict[str, str]:
  """Writes a folder of safetensors and returns the checksums of what a server makes of it.

  Args:
    folder: None in processes that do not write; they take part in gathering, and return {}.
    leaf_at: path → array or parts of a kernel, see `stream_tensors`.
    dtype: type that the server computes in.
  """
  arrays = stream_tensors(tensors(model), leaf_at, dtype)
  if folder is None:
    for _ in arrays:
      pass
    return {}
  checksums = Checksums()
  write_tensors(folder, model, _added(checksums, model, dtype, arrays), dtype)
  return checksums.result()


def _added(
  checksums: Checksums, model: ModelConfig, dtype: np.dtype, arrays: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
  for plan, array in zip(plan_tensors(model, dtype), arrays, strict=True):
    checksums.add(plan.name, array)
    yield array


def check_served(expected: Mapping[str, str], served: Mapping[str, str], url: str) -> None:
  """Raises UsageError, with the name of a tensor, where a server holds other weights than it was sent.

  Args:
    expected: vLLM's name → digest.
    served: the same after the ranks that hold the tensor, "dp0:pp0:tp0:NAME". Names that only the server has, such as
      scales of its caches, are not compared.
    url: of the server, for the error.
  """
  wrong = [
    key for key, digest in served.items() if expected.get(_RANKS.sub("", key), digest) != digest
  ]
  missing = [*expected.keys() - {_RANKS.sub("", key) for key in served}]
  if wrong or missing:
    first = min(wrong or missing)
    raise UsageError(
      f"after the update {url} holds other weights than the trainer: {len(wrong)} tensors differ and {len(missing)} "
      f"are missing, first {first}; serve the folder that the run starts from, with --dtype equal to engine.dtype and "
      "no quantization"
    )
