"""TPU chips and topologies: what there is to spend. No TPU is needed to name one."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of a topology, as JAX counts them.

  hbm_bytes: what the compiler lets a program use; flops: peak of bfloat16 products, a second; hbm: bytes a second;
  ici: bytes a second of one link, one way; dcn: bytes a second between slices.

  Sources: Google Cloud's pages on each TPU version (peak, HBM, bandwidths); "How to Scale Your Model" (Austin et al.,
  2025) for links and DCN; hbm_bytes from the compiler's own refusals.
  """

  name: str
  hbm_bytes: float
  flops: float
  hbm: float
  ici: float
  dcn: float


CHIPS: Mapping[str, Chip] = {
  chip.name: chip
  for chip in (
    Chip(
      "v4", 30.75 * GIB / 2, 137.5e12, 614e9, 45e9, 3.1e9
    ),  # two devices a chip, unless megacore
    Chip("v5e", 15.75 * GIB, 197e12, 819e9, 45e9, 3.1e9),
    Chip("v5p", 95.74 * GIB, 459e12, 2765e9, 90e9, 6.2e9),
    Chip("v6e", 31.25 * GIB, 918e12, 1640e9, 90e9, 12.5e9),
    Chip("tpu7x", 94.75 * GIB, 1154e12, 3690e9, 90e9, 12.5e9),  # two devices a chip
  )
}


def topology_devices(topology: str, slices: int) -> tuple[Chip, Sequence[Any]]:
  """The chip of a topology, and its devices: `v5e:8x8`, `v5p:4x4x4`, `v6e:1x1`; `slices` of them.

  They compile, and cannot run. Raises ValueError for a topology that does not exist, ImportError without libtpu.
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
      "compiling for TPUs needs libtpu, which runs on machines without one: pip install 'spatial-vlm[plan]'"
    ) from error
  _keep_libtpu_quiet()
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if set(grid) <= set("1x"):
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
  except Exception as error:
    raise ValueError(
      f"the TPU compiler knows no topology {topology!r} ({str(error).splitlines()[0]}); v5e and v6e have two "
      "dimensions (2x2, 4x4, 8x8, 16x16 …), v4, v5p and tpu7x three (2x2x1, 4x4x4 …)"
    ) from error
  return CHIPS[version], found.devices


def _keep_libtpu_quiet() -> None:
  """It would look for a TPU's metadata, and for another process that holds a TPU."""
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5e-1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def links(mesh: Mesh) -> dict[str, int]:
  """Dimensions of the torus that each mesh axis runs along: each gives a chip two links to share the traffic."""
  coords = np.array([getattr(device, "coords", (0, 0, 0)) for device in mesh.devices.flat])
  grid = coords.reshape(*mesh.devices.shape, -1)
  return {
    axis: max(
      1, int(np.any(grid != grid.take([0], axis=i), axis=tuple(range(grid.ndim - 1))).sum())
    )
    for i, axis in enumerate(mesh.axis_names)
  }
