"""Settings to try on a topology: shapes of the mesh, micro-batches and policies of rematerialisation."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from spatial_vlm.planning.compiled import Needs
from spatial_vlm.sharding import AXES

REMAT = ("dots", "attention", "context", "full")
"""Policies that are tried: "none" hardly ever fits, "offload" takes minutes to compile."""
MOST_TENSOR = 16
"""Devices that share the heads and hidden units of a layer: with more, they mostly talk."""
MOST_FSDP = 128
"""Devices that the widths of all published sizes can be cut over (1,152 is no multiple of 256)."""


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of a training command that change what it needs, not what it computes."""

  mesh: tuple[int, int, int, int]
  """Sizes of AXES."""
  micro_batches: int
  remat: str

  def settings(self) -> dict[str, Any]:
    """As leaves of a config."""
    mesh = {f"mesh.{axis}": size for axis, size in zip(AXES, self.mesh, strict=True)}
    return {**mesh, "micro_batches": self.micro_batches, "remat": self.remat}


@dataclasses.dataclass(frozen=True)
class Ranked:
  """A candidate and what its programs need."""

  candidate: Candidate
  needs: Sequence[Needs]

  @property
  def fits(self) -> bool:
    return all(needs.fits for needs in self.needs)

  @property
  def peak_bytes(self) -> int:
    return max(needs.peak_bytes for needs in self.needs)

  @property
  def fastest_s(self) -> float:
    return sum(needs.fastest_s for needs in self.needs)

  @property
  def slowest_s(self) -> float:
    return sum(needs.slowest_s for needs in self.needs)


def meshes(chips: int, slices: int) -> list[tuple[int, int, int, int]]:
  """Shapes worth trying over `chips`: parameters cut over as many devices as can cut them, tensor-parallel or not.

  Replicas (`data`) only take what `fsdp` cannot: they save nothing, and send no less.
  """
  found = []
  for tensor in (2**i for i in range(MOST_TENSOR.bit_length())):
    others, rest = divmod(chips // slices, tensor)
    fsdp = math.gcd(others, MOST_FSDP)
    if others and not rest:
      found.append((slices, others // fsdp, fsdp, tensor))
  return found


def search(
  shapes: Iterable[tuple[int, int, int, int]],
  rows: int,
  attempt: Callable[[Candidate], Ranked],
) -> Iterator[Ranked]:
  """Every mesh with every policy, each with the fewest micro-batches that fit: more would only take longer.

  `rows`: of an update; a mesh that cannot give every device a whole share of them is left out.
  """
  for mesh, policy in itertools.product(shapes, REMAT):
    shares = math.prod(mesh[:3])
    if rows % shares:
      continue
    for count in (2**i for i in range(rows.bit_length())):
      if (rows // shares) % count:
        break
      ranked = attempt(Candidate(mesh, count, policy))
      yield ranked
      if ranked.fits:
        break


def rank(found: Iterable[Ranked]) -> list[Ranked]:
  """Those that fit, by the middle of their bounds; then those that do not, by what they need."""
  return sorted(
    found,
    key=lambda ranked: (
      not ranked.fits,
      ranked.fastest_s + ranked.slowest_s,
      ranked.peak_bytes,
    ),
  )
