"""Compiles a traced program ahead of time for absent chips and reads off what it costs each of them."""

import dataclasses
import enum
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_vlm.objectives.cross_entropy import CHUNKS
from spatial_vlm.planning.chips import Chip, torus_dimensions
from spatial_vlm.planning.collectives import Collective, find_collectives
from spatial_vlm.planning.flops import traced_flops
from spatial_vlm.planning.hbm_traffic import hbm_traffic
from spatial_vlm.planning.hlo import Hlo
from spatial_vlm.rollout.sampler import TOKENS

PLATFORM = "tpu"
LARGE_COLLECTIVE_BYTES = 10**8
"""Collectives of this size must not run for every token or chunk."""


class ProgramKind(enum.StrEnum):
  """The kinds of programs; each has its own remedies (`planning.advice`)."""

  TRAINING = "training"
  SAMPLING = "sampling"
  OTHER = "other"


class TracedProgram(NamedTuple):
  """A program traced with shapes over a mesh, and its operations over all chips."""

  traced: jax.stages.Traced
  mesh: Mesh
  flops: float
  model_flops: float
  """Operations of the same work without recomputation."""
  trip_count: int
  """How often loops over tokens run."""


class DeviceMemory(NamedTuple):
  """What lies on the chips while a program runs, as named trees of shapes with shardings."""

  inputs: Mapping[str, Any]
  """Arrays that the program reads."""
  resident: Mapping[str, Any] = {}
  """Arrays that stay on the chips but are no inputs of the program."""
  kv_cache_bytes: int = 0
  """Bytes per chip of keys and values; they are part of the program's temporaries."""
  donated_bytes: int = 0
  """Bytes per chip that the program may overwrite."""


class Program(NamedTuple):
  """A program that a command would run, ready to compile."""

  name: str
  kind: ProgramKind
  trace: TracedProgram
  memory: DeviceMemory


@dataclasses.dataclass(frozen=True)
class ProgramCost:
  """What a program needs of one chip, in bytes, operations and seconds.

  The peak consists of the resident arrays, keys and values, and activations and other temporaries.
  """

  name: str
  kind: ProgramKind
  chip: str
  chips: int
  fits: bool
  peak_bytes: int
  """The most memory that is in use at one time."""
  resident_bytes: Mapping[str, int]
  """Name → bytes of the arrays that stay on the chip: the program's inputs, and others."""
  kv_cache_bytes: int
  lost_donation_bytes: int
  """Donated bytes that the compiler copies instead of overwriting."""
  flops: float
  model_flops: float
  """Operations over all chips, without recomputation."""
  memory_bytes: int
  """HBM traffic."""
  collectives: Mapping[str, Mapping[str, int]]
  """Mesh axes ("fsdp", "data+fsdp") → kind → bytes that a chip sends."""
  loop_collective_bytes: Mapping[str, int]
  """Scope of a loop over tokens or chunks → bytes sent by large collectives inside it."""
  seconds: Mapping[str, float]
  """Resource (compute, memory, network by mesh axes) → lower bound of the time."""

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> "ProgramCost":
    """Reads what `dataclasses.asdict` gave, after a round trip through JSON."""
    return cls(**{**fields, "kind": ProgramKind(fields["kind"])})

  @property
  def collective_bytes(self) -> int:
    return sum(bytes for kinds in self.collectives.values() for bytes in kinds.values())

  @property
  def fastest_s(self) -> float:
    """Time if everything overlaps: that of the scarcest resource."""
    return max(self.seconds.values(), default=0.0)

  @property
  def slowest_s(self) -> float:
    """Time if nothing overlaps."""
    return sum(self.seconds.values())

  def mfu(self, seconds: float, peak_flops: float) -> float:
    """Returns the model FLOPs utilisation: `model_flops` over what the chips could do in this time."""
    return self.model_flops / (self.chips * peak_flops * seconds) if seconds else 0.0


def trace_program(
  mesh: Mesh, trace: Callable[[str], jax.stages.Traced], remat: str, trip_count: int = 1
) -> TracedProgram:
  """Traces a program under its rematerialisation policy, and under "none" to count its model FLOPs.

  `trace(remat)` traces the program under a policy.
  """
  with jax.set_mesh(mesh):
    traced = trace(remat)
    without_remat = traced if remat == "none" else trace("none")
  return TracedProgram(
    traced=traced,
    mesh=mesh,
    flops=traced_flops(traced.jaxpr.jaxpr, trip_count),
    model_flops=traced_flops(without_remat.jaxpr.jaxpr, trip_count),
    trip_count=trip_count,
  )


def compile_program(program: Program, chip: Chip) -> ProgramCost:
  """Compiles a program and returns its cost.

  The compiler refuses a program that is too large for the chip. Then only its size is known.
  """
  trace, memory = program.trace, program.memory
  resident = sum(map(bytes_per_chip, memory.resident.values()))
  common: dict[str, Any] = dict(
    name=program.name,
    kind=program.kind,
    chip=chip.name,
    chips=trace.mesh.size,
    resident_bytes={
      name: bytes_per_chip(tree) for name, tree in {**memory.inputs, **memory.resident}.items()
    },
    kv_cache_bytes=memory.kv_cache_bytes,
    flops=trace.flops / trace.mesh.size,
    model_flops=trace.model_flops,
  )
  try:
    with jax.set_mesh(trace.mesh):
      compiled = trace.traced.lower(lowering_platforms=(PLATFORM,)).compile()
  except jax.errors.JaxRuntimeError as error:
    return ProgramCost(
      **common,
      fits=False,
      peak_bytes=_refused_bytes(str(error)) + resident,
      lost_donation_bytes=0,
      memory_bytes=0,
      collectives={},
      loop_collective_bytes={},
      seconds={},
    )
  text = compiled.as_text()
  assert text is not None  # XLA's executables have one
  hlo = Hlo(text, {TOKENS: trace.trip_count})
  collectives = find_collectives(hlo, trace.mesh.shape)
  traffic, stats = hbm_traffic(hlo), compiled.memory_analysis()
  assert stats is not None  # libtpu always tells
  peak = stats.peak_memory_in_bytes + resident
  return ProgramCost(
    **common,
    fits=peak <= chip.hbm_bytes,
    peak_bytes=peak,
    lost_donation_bytes=max(0, memory.donated_bytes - stats.alias_size_in_bytes),
    memory_bytes=traffic,
    collectives=bytes_by_axes(collectives),
    loop_collective_bytes={
      scope: sum(
        c.total_bytes
        for c in collectives
        if c.bytes >= LARGE_COLLECTIVE_BYTES and c.is_inside(scope)
      )
      for scope in (TOKENS, CHUNKS)
    },
    seconds=roofline(chip, trace, traffic, collectives),
  )


def bytes_per_chip(tree: Any) -> int:
  """Returns the bytes of a tree of sharded arrays (or shapes) on the first chip."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def bytes_by_axes(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
  """Sums the bytes that a chip sends: mesh axes → kind → bytes."""
  table: dict[str, dict[str, int]] = {}
  for collective in collectives:
    kinds = table.setdefault("+".join(collective.axes) or "none", {})
    kinds[collective.kind] = kinds.get(collective.kind, 0) + collective.total_bytes
  return table


def roofline(
  chip: Chip, trace: TracedProgram, memory_bytes: int, collectives: Sequence[Collective]
) -> dict[str, float]:
  """Returns seconds by resource, each at its peak rate.

  Resources are bfloat16 products, HBM, the links of each mesh axis (two per dimension of the torus that it spans), and
  the network between slices.
  """
  dimensions = torus_dimensions(trace.mesh)
  seconds = {
    "compute": trace.flops / trace.mesh.size / chip.peak_flops,
    "memory": memory_bytes / chip.hbm_bytes_per_s,
  }
  for collective in collectives:
    if "slice" in collective.axes:
      bandwidth = chip.dcn_bytes_per_s
    else:
      spanned = sum(dimensions.get(axis, 1) for axis in collective.axes or ("?",))
      bandwidth = 2 * chip.ici_bytes_per_s * spanned
    key = f"network {'+'.join(collective.axes) or 'none'}"
    seconds[key] = seconds.get(key, 0.0) + collective.total_bytes / bandwidth
  return seconds


REFUSALS = (
  r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
  r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)
"""The compiler's messages about a program that is too large, with its size."""


def _refused_bytes(message: str) -> int:
  """Returns the size that the compiler reports for a program that is too large.

  >>> _refused_bytes("RESOURCE_EXHAUSTED: … Used 2.5K of 15.75G hbm. Exceeded hbm capacity …")
  2560

  Raises:
    ValueError: the message is about another error.
  """
  for pattern in REFUSALS:
    if found := re.search(pattern, message):
      amount, unit = found.groups()
      return round(float(amount) * 1024 ** " KMGT".index(unit or " "))
  raise ValueError(f"the program does not compile: {message.splitlines()[0]}")
