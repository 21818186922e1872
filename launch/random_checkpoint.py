"""Writes a Qwen3-VL of a published size with random weights, as a sharded Hugging Face folder.

python launch/random_checkpoint.py FOLDER --size 8b    17.5 GB in files of 1 GB; some minutes

Use it to test loading, sharding and memory at full size without the published weights. It keeps one tensor in memory at
a time, and the same seed gives the same bytes. No tokenizer is written.
"""

import argparse
import math
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
from etils import epath

from spatial_vlm.huggingface.safetensors_folder import TensorPlan
from spatial_vlm.huggingface.weights import plan_tensors, write_tensors
from spatial_vlm.model.config import PRESETS
from spatial_vlm.progress import progress_bar

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
DRAWN = 1 << 22
"""Values drawn at a time."""


def draw_tensor(tensor: TensorPlan, seed: int, number: int) -> np.ndarray:
  """Draws weights with which activations neither vanish nor explode: variance 1 / fan-in, norms around 1."""
  rng = np.random.default_rng((seed, number))
  mean = float("norm" in tensor.name and tensor.name.endswith("weight"))
  fan_in = math.prod(tensor.shape[1:]) if len(tensor.shape) > 1 else 100
  values = np.empty(math.prod(tensor.shape), tensor.dtype)
  for start in range(0, len(values), DRAWN):
    noise = rng.standard_normal(min(DRAWN, len(values) - start), np.float32)
    values[start : start + DRAWN] = mean + noise / np.float32(fan_in**0.5)
  return values.reshape(tensor.shape)


def draw_all(plan: Sequence[TensorPlan], seed: int) -> Iterator[np.ndarray]:
  """Yields the tensors and shows a progress bar of their bytes."""
  total = sum(tensor.bytes for tensor in plan)
  with progress_bar("tensors", total, unit="B") as bar:
    for number, tensor in enumerate(plan):
      yield draw_tensor(tensor, seed, number)
      bar.update(tensor.bytes)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=epath.Path)
  parser.add_argument("--size", choices=sorted(PRESETS), default="tiny")
  parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--max-file-bytes", type=int, default=10**9)
  args = parser.parse_args()
  config, dtype = PRESETS[args.size], DTYPES[args.dtype]
  plan = plan_tensors(config, dtype)
  write_tensors(args.folder, config, draw_all(plan, args.seed), dtype, args.max_file_bytes)
  print(f"{args.folder}: {len(plan)} tensors, {sum(t.bytes for t in plan) / 1e9:.1f} GB")


if __name__ == "__main__":
  main()
