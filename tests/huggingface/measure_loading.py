"""Memory and bytes that one process of a pod takes to load its part of a checkpoint, as JSON.

python tests/huggingface/measure_loading.py FOLDER --devices 16 --dtype float32

Parameters are cut over an FSDP mesh of so many devices; this process loads the part of the first. With one device it
loads the whole model.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from spatial_vlm import sharding  # noqa: E402
from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.weights import open_checkpoint  # noqa: E402
from spatial_vlm.parameters.paths import path_name  # noqa: E402


def peak_bytes() -> int:
  """Largest resident memory of this process so far (Linux)."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def read_bytes() -> int:
  """Bytes that this process has read so far (Linux), from the disk or its cache."""
  return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder")
  parser.add_argument("--devices", type=int, default=16)
  parser.add_argument("--dtype", default="bfloat16")
  args = parser.parse_args()
  jax.config.update("jax_num_cpu_devices", args.devices)
  mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
  checkpoint = open_checkpoint(args.folder, read_model_config(args.folder))
  where = sharding.param_shardings(mesh, checkpoint.shapes)
  device, kept = jax.devices()[0], []
  before, started, clock = peak_bytes(), time.perf_counter(), time.process_time()
  read = read_bytes()
  for (path, leaf), of_leaf in zip(
    jax.tree_util.tree_leaves_with_path(checkpoint.shapes), jax.tree.leaves(where), strict=True
  ):
    name = path_name(path)
    leaf = jax.ShapeDtypeStruct(leaf.shape, np.dtype(args.dtype))
    index = of_leaf.devices_indices_map(leaf.shape)[device]
    kept += checkpoint.on_devices(name, leaf, {device: index})
  result = {
    "kept_bytes": sum(array.nbytes for array in kept),
    "peak_bytes": peak_bytes(),
    "peak_before_bytes": before,
    "read_bytes": read_bytes() - read,
    "seconds": time.perf_counter() - started,
    "cpu_seconds": time.process_time() - clock,
  }
  sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
  main()
