"""Writes LoRA factors as a PEFT adapter: adapter_config.json and adapter_model.safetensors.

  base_model.model.<module>.lora_A.weight [r, in]     base_model.model.<module>.lora_B.weight [out, r]

Modules are named as in the base checkpoint. A module that is several kernels here (fused q, k, v of the vision tower)
gets the concatenated factors of these kernels; each kernel's B is zero outside its own rows. The patch embedding is a
convolution there: its A has the kernel's five axes, [r, channels, frames, rows, columns], and its B [out, r, 1, 1, 1].
"""

import json

import jax
import numpy as np
import safetensors.numpy
from etils import epath
from jax.experimental import multihost_utils

from spatial_vlm.huggingface.tensor_table import Tensor, tensors
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.parameters.partition import Subset, flatten
from spatial_vlm.parameters.paths import sibling
from spatial_vlm.types import Params


def write_adapter(
  folder: epath.PathLike, base: str, model: ModelConfig, subset: Subset, adapters: Params
) -> None:
  """Writes LoRA factors in float32. All processes call this; process 0 writes.

  Args:
    base: folder of the base checkpoint.
    subset: gives rank and alpha.
    adapters: the factors, arrays of any sharding.
  """
  host = {path: _to_host(leaf) for path, leaf in flatten(adapters).items()}
  if jax.process_index() > 0:
    return
  stored, several = {}, {}
  for tensor in tensors(model):
    if not tensor.is_matrix:
      continue
    parts = [path for path in tensor.paths if sibling(path, "lora_a") in host]
    if not parts:
      continue
    a, b = _concatenate_factors(tensor, host, subset.rank)
    for layer, name in enumerate(tensor.names(a.shape)):
      module = name.removesuffix(".weight")
      stored[f"base_model.model.{module}.lora_A.weight"] = a[layer] if tensor.is_stacked else a
      stored[f"base_model.model.{module}.lora_B.weight"] = b[layer] if tensor.is_stacked else b
      if len(parts) > 1:
        several[module] = len(parts)
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  modules = sorted({name.split(".lora_")[0].removeprefix("base_model.model.") for name in stored})
  description = {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": base,
    "target_modules": modules,
    "r": subset.rank,
    "lora_alpha": subset.alpha,
    "rank_pattern": {module: subset.rank * count for module, count in several.items()},
    "alpha_pattern": {module: subset.alpha * count for module, count in several.items()},
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
  }
  weights = {name: np.ascontiguousarray(value) for name, value in stored.items()}
  (folder / "adapter_model.safetensors").write_bytes(
    safetensors.numpy.save(weights, metadata={"format": "pt"})
  )
  (folder / "adapter_config.json").write_text(
    json.dumps(description, indent=2, sort_keys=True) + "\n"
  )


def _concatenate_factors(
  tensor: Tensor, host: dict[str, np.ndarray], rank: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns A [(layers) R in…] and B [(layers) out R …] of a tensor; R is `rank` times its kernels with factors."""
  width, rows = tensor.shape[0], tensor.shape[0] // len(tensor.paths)
  above, below = [], []
  for part, path in enumerate(tensor.paths):
    if sibling(path, "lora_a") not in host:
      continue
    a, b = host[sibling(path, "lora_a")], host[sibling(path, "lora_b")]
    leading = a.shape[:1] if tensor.is_stacked else ()
    above.append(a.reshape(*leading, -1, rank).swapaxes(-1, -2))
    own = np.zeros((*leading, width, rank), b.dtype)
    own[..., part * rows : (part + 1) * rows, :] = b.reshape(*leading, rank, rows).swapaxes(-1, -2)
    below.append(own)
  a, b = np.concatenate(above, axis=-2), np.concatenate(below, axis=-1)
  window = tensor.shape[2:]  # of a convolution
  return a.reshape(*a.shape[:-1], *tensor.shape[1:]), b.reshape(*b.shape, *(1 for _ in window))


def _to_host(leaf: jax.Array) -> np.ndarray:
  return np.asarray(multihost_utils.process_allgather(leaf, tiled=True), np.float32)
