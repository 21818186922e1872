"""TPU chips and topologies: memory, peak rates and link bandwidths. No TPU is needed."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from spatial_vlm import extras

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """Describes one device of a topology, as JAX counts devices.

  Sources: Google Cloud's pages on each TPU version (peak, HBM, bandwidths); "How to Scale Your Model" (Austin et al.,
  2025) for links and DCN; `hbm_bytes` from the compiler's own out-of-memory messages.
  """

  name: str
  hbm_bytes: float
  """HBM that the compiler lets one program use."""
  peak_flops: float
  """Peak rate of bfloat16 matrix products, in operations per second."""
  hbm_bytes_per_s: float
  ici_bytes_per_s: float
  """Bandwidth of one link between chips, in one direction."""
  dcn_bytes_per_s: float
  """Bandwidth between slices."""


CHIPS: Mapping[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip("v4", 30.75 * GIB, 275e12, 1228e9, 45e9, 3.1e9),
    Chip("v5e", 15.75 * GIB, 197e12, 819e9, 45e9, 3.1e9),
    Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 90e9, 6.2e9),
    Chip("v6e", 31.25 * GIB, 918e12, 1640e9, 90e9, 12.5e9),
    Chip("tpu7x", 94.75 * GIB, 1154e12, 3690e9, 90e9, 12.5e9),  # two devices per chip
  )
}


def topology_devices(topology: str, slices: int) -> tuple[Chip, Sequence[Any]]:
  """Returns the chip of a topology and its devices, which can compile but not run.

  Args:
    topology: TPU version and grid of chips, e.g. `v5e:8x8`, `v5p:4x4x4`, `v6e:1x1`.
    slices: number of slices of that grid.

  Raises:
    ValueError: the topology does not exist.
    ImportError: libtpu is not installed.
  """
  version, colon, grid = topology.partition(":")
  if version not in CHIPS or not colon:
    raise ValueError(
      f"topology is {topology!r}; give VERSION:GRID, e.g. v5e:8x8 or v5p:4x4x4; versions are {', '.join(CHIPS)}"
    )
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
      extras.need("plan", "compiling for TPUs, which works without one,")
    ) from error
  _keep_libtpu_offline()
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if set(grid) <= set("1x"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  if version == "v4":
    options["chip_config_name"] = "megacore"  # one device per chip, as JAX runs it
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
  except Exception as error:
    raise ValueError(
      f"the TPU compiler knows no topology {topology!r} ({str(error).splitlines()[0]}); v5e and v6e have two "
      "dimensions (2x2, 4x4, 8x8, 16x16 …), v4, v5p and tpu7x three (2x2x1, 4x4x4 …)"
    ) from error
  return CHIPS[version], found.devices


def _keep_libtpu_offline() -> None:
  """Keeps libtpu from querying a TPU's metadata server and from waiting for a process that holds a TPU."""
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def torus_dimensions(mesh: Mesh) -> dict[str, int]:
  """Returns the number of torus dimensions that each mesh axis spans.

  Each dimension gives a chip two links for the traffic along that axis.
  """
  coords = np.array([getattr(device, "coords", (0, 0, 0)) for device in mesh.devices.flat])
  grid = coords.reshape(*mesh.devices.shape, -1)
  return {
    axis: max(
      1, int(np.any(grid != grid.take([0], axis=i), axis=tuple(range(grid.ndim - 1))).sum())
    )
    for i, axis in enumerate(mesh.axis_names)
  }
