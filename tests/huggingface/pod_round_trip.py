"""One process of several: reads a checkpoint over a mesh of all their devices and writes it again.

python tests/huggingface/pod_round_trip.py FOLDER OUTPUT COORDINATOR PROCESSES NUMBER
"""

import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

from spatial_vlm import sharding  # noqa: E402
from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.weights import open_checkpoint, stream_checkpoint  # noqa: E402
from spatial_vlm.parameters.partition import flatten  # noqa: E402


def main() -> None:
  folder, output, coordinator, processes, number = sys.argv[1:]
  jax.config.update("jax_num_cpu_devices", 2)
  jax.distributed.initialize(coordinator, int(processes), int(number))
  mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1})
  checkpoint = open_checkpoint(folder, read_model_config(folder))
  params = checkpoint.read(sharding.with_param_shardings(mesh, checkpoint.shapes))
  assert not params["text"]["layers"]["mlp"]["down_proj"]["kernel"].is_fully_addressable
  flat = flatten(params)
  dtype = flat["text/embed/embedding"].dtype
  stream_checkpoint(output, checkpoint.config, flat.__getitem__, dtype, max_file_bytes=10**6)


if __name__ == "__main__":
  main()
