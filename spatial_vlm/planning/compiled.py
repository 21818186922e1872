"""A program of a run, compiled ahead of time for chips that are not there, and what it needs of each of them."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_vlm.objectives.cross_entropy import CHUNKS
from spatial_vlm.planning.chips import Chip, links
from spatial_vlm.planning.hlo import Collective, Hlo
from spatial_vlm.rollout.sampler import TOKENS

PLATFORM = "tpu"
LARGE = 10**8
"""Bytes of a collective that must not run for every token or chunk."""


@dataclasses.dataclass(frozen=True)
class Program:
  """What is to be compiled: the program that a command would run, traced with shapes.

  held: what it reads and keeps, by name, as trees of shapes with shardings;
  beside: what lies on the chips meanwhile and is none of its business;
  cache_bytes: of its temporaries, a chip's keys and values; donated: bytes of a chip that it may overwrite;
  useful_flops: operations of the same work without computing anything again; traced_flops: those of the program, both
  over all chips; turns: how often loops over tokens run.
  """

  name: str
  traced: jax.stages.Traced
  mesh: Mesh
  held: Mapping[str, Any]
  beside: Mapping[str, Any]
  cache_bytes: int
  donated: int
  useful_flops: float
  traced_flops: float
  turns: int


@dataclasses.dataclass(frozen=True)
class Needs:
  """What the program needs of one chip, in bytes, operations and seconds.

  peak_bytes: the most that is in use at a time; held_bytes: what lies there throughout; cache_bytes: keys and values;
  the rest of the peak are activations and other temporaries. seconds: lower bounds by resource (compute, memory,
  network by mesh axis).
  """

  program: str
  chip: str
  chips: int
  fits: bool
  peak_bytes: int
  held_bytes: Mapping[str, int]
  cache_bytes: int
  lost_donation_bytes: int
  flops: float
  useful_flops: float
  memory_bytes: int
  collectives: Mapping[str, Mapping[str, int]]
  """Mesh axes ("fsdp", "data+fsdp") -> kind -> bytes that a chip sends."""
  in_loops: Mapping[str, int]
  """Scope of a loop over tokens or chunks -> bytes sent by large collectives inside it."""
  seconds: Mapping[str, float]

  @property
  def collective_bytes(self) -> int:
    return sum(bytes for kinds in self.collectives.values() for bytes in kinds.values())

  @property
  def fastest_s(self) -> float:
    """If everything overlaps: the scarcest resource alone."""
    return max(self.seconds.values(), default=0.0)

  @property
  def slowest_s(self) -> float:
    """If nothing overlaps."""
    return sum(self.seconds.values())

  def mfu(self, seconds: float, peak_flops: float) -> float:
    """Model FLOPs utilisation: useful operations over those that the chips could do in this time."""
    return self.useful_flops / (self.chips * peak_flops * seconds) if seconds else 0.0


def needs(program: Program, chip: Chip) -> Needs:
  """Compiles the program and reads off what it needs. A program that is too large for the chip is refused by the
  compiler: then its size is all that is known."""
  held = {name: bytes_of_a_chip(tree) for name, tree in {**program.held, **program.beside}.items()}
  beside = sum(map(bytes_of_a_chip, program.beside.values()))
  common = dict(
    program=program.name,
    chip=chip.name,
    chips=program.mesh.size,
    held_bytes=held,
    cache_bytes=program.cache_bytes,
    flops=program.traced_flops / program.mesh.size,
    useful_flops=program.useful_flops,
  )
  try:
    with jax.set_mesh(program.mesh):
      compiled = program.traced.lower(lowering_platforms=(PLATFORM,)).compile()
  except jax.errors.JaxRuntimeError as error:
    return Needs(
      **common,
      fits=False,
      peak_bytes=_refused_bytes(str(error)) + beside,
      lost_donation_bytes=0,
      memory_bytes=0,
      collectives={},
      in_loops={},
      seconds={},
    )
  hlo = Hlo(compiled.as_text(), {TOKENS: program.turns})
  exchanges = hlo.collectives(program.mesh.shape)
  memory, stats = hlo.memory_bytes(), compiled.memory_analysis()
  peak = stats.peak_memory_in_bytes + beside
  return Needs(
    **common,
    fits=peak <= chip.hbm_bytes,
    peak_bytes=peak,
    lost_donation_bytes=max(0, program.donated - stats.alias_size_in_bytes),
    memory_bytes=memory,
    collectives=by_axis(exchanges),
    in_loops={
      scope: sum(c.total_bytes for c in exchanges if c.bytes >= LARGE and c.stands_in(scope))
      for scope in (TOKENS, CHUNKS)
    },
    seconds=roofline(chip, program, memory, exchanges),
  )


def bytes_of_a_chip(tree: Any) -> int:
  """Bytes that the first chip holds of arrays with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def by_axis(exchanges: list[Collective]) -> dict[str, dict[str, int]]:
  """Mesh axes -> kind -> bytes."""
  table: dict[str, dict[str, int]] = {}
  for exchange in exchanges:
    kinds = table.setdefault("+".join(exchange.axes) or "none", {})
    kinds[exchange.kind] = kinds.get(exchange.kind, 0) + exchange.total_bytes
  return table


def roofline(
  chip: Chip, program: Program, memory_bytes: int, exchanges: list[Collective]
) -> dict[str, float]:
  """Seconds by resource, each at its peak: bfloat16 products, HBM, and the links of each axis (two for every dimension
  of the torus that it runs along) or, between slices, the network."""
  dimensions = links(program.mesh)
  seconds = {
    "compute": program.traced_flops / program.mesh.size / chip.flops,
    "memory": memory_bytes / chip.hbm,
  }
  for exchange in exchanges:
    if "slice" in exchange.axes:
      bandwidth = chip.dcn
    else:
      bandwidth = 2 * chip.ici * sum(dimensions.get(axis, 1) for axis in exchange.axes or ("?",))
    key = f"network {'+'.join(exchange.axes) or 'none'}"
    seconds[key] = seconds.get(key, 0.0) + exchange.total_bytes / bandwidth
  return seconds


SIZES = (
  r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
  r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",
)
"""How the compiler says what a program that is too large would need."""


def _refused_bytes(message: str) -> int:
  """What a program that is too large needs, in the compiler's words. Any other error is raised again.

  >>> _refused_bytes("RESOURCE_EXHAUSTED: … Used 2.5K of 15.75G hbm. Exceeded hbm capacity …")
  2560
  """
  for pattern in SIZES:
    if found := re.search(pattern, message):
      amount, unit = found.groups()
      return round(float(amount) * 1024 ** " KMGT".index(unit or " "))
  raise ValueError(f"the program does not compile: {message.splitlines()[0]}")
