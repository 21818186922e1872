"""Collectives of a compiled program: kind, mesh axes, bytes that a chip sends, and how often they run."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from spatial_vlm.planning.hlo import Hlo, is_loop_of
from spatial_vlm.planning.hlo_text import Op, shape_bytes

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "send",
)
"""Opcodes that move data between chips; `send` uses the data-centre network between slices."""


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation between chips, and how often it runs."""

  kind: str
  axes: tuple[str, ...]
  """Mesh axes that its groups span; "?" if it names no groups."""
  bytes: int
  """Bytes that one chip sends in each run."""
  runs: int
  scopes: tuple[str, ...]
  """Scopes of the loops around it, from the outermost, then its own."""

  @property
  def total_bytes(self) -> int:
    return self.bytes * self.runs

  def is_inside(self, scope: str) -> bool:
    """Returns whether it runs inside a loop of the named scope."""
    return any(is_loop_of(scope, found.partition("/body")[0]) for found in self.scopes)


def find_collectives(hlo: Hlo, mesh: Mapping[str, int]) -> list[Collective]:
  """Returns all collectives of a program over a mesh of these axis sizes.

  A collective that the compiler has spread over several fusions keeps one channel and counts once.
  """
  found: dict[tuple, Collective] = {}
  for name, ops in hlo.computations.items():
    for op in ops if hlo.runs[name] else ():
      kind = op.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      groups = replica_groups(op.attributes, math.prod(mesh.values()))
      channel = re.search(r"channel_id=(\d+)", op.attributes)
      found.setdefault(
        (kind, channel[1] if channel else (name, op.name)),
        Collective(
          kind,
          ("slice",) if kind == "send" else spanned_axes(groups, mesh),
          _sent_bytes(hlo, name, op, groups),
          hlo.runs[name],
          (*hlo.scopes[name], op.scope),
        ),
      )
  return list(found.values())


def _sent_bytes(hlo: Hlo, computation: str, op: Op, groups: np.ndarray) -> int:
  """Returns the bytes that one chip sends, by ring algorithms over a group of n."""
  n = groups.shape[1] if groups.size else 1
  operands = sum(shape_bytes(hlo.ops[computation][name].shape) for name in op.operands)
  share = (n - 1) / n
  return round(
    {
      "all-gather": operands * (n - 1),
      "all-reduce": 2 * shape_bytes(op.shape) * share,  # operands may be wider than what is sent
      "reduce-scatter": operands * share,
      "all-to-all": operands * share,
      "collective-permute": operands,
      "send": operands,
    }[op.opcode.removesuffix("-start")]
  )


def replica_groups(attributes: str, chips: int) -> np.ndarray:
  """Returns Int[groups, members]: the partitions of each group; empty if none are named.

  HLO has three notations: lists, `[8,8]<=[64]T(…)`, and axes of a mesh.

  >>> replica_groups("replica_groups={{0,1},{2,3}}, x", 4).tolist()
  [[0, 1], [2, 3]]
  >>> replica_groups("replica_groups=[2,2]<=[2,2]T(1,0), x", 4).tolist()
  [[0, 2], [1, 3]]
  >>> replica_groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", 4).tolist()
  [[0, 1], [2, 3]]
  """
  if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
    rows = re.findall(r"\{([\d,]+)\}", found[1])
    return np.array([[int(item) for item in row.split(",")] for row in rows])
  if found := re.search(r"replica_groups=\[([\d,]+)\]<=(\S+?)(?:, |$)", attributes):
    return _iota(found[2]).reshape([int(size) for size in found[1].split(",")])
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes):
    return _mesh_groups(*found.groups())
  if found := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes):
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1])
    return np.array([[int(a), int(b)] for a, b in pairs])
  return np.arange(chips)[None] if "replica_groups={}" in attributes else np.zeros((0, 1), int)


def _mesh_groups(mesh: str, device_order: str, spanned: str) -> np.ndarray:
  """Returns the groups of `mesh['a'=2,'b'=2]<=[4] {'b'}`: lines of the mesh along the spanned axes."""
  sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh)}
  order = re.search(r"<=(\[[\d,]+\](?:T\([\d,]+\))?)", device_order)
  grid = (_iota(order[1]) if order else np.arange(math.prod(sizes.values()))).reshape(
    [*sizes.values()]
  )
  along = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", spanned)]
  across = [i for i in range(grid.ndim) if i not in along]
  members = math.prod(grid.shape[i] for i in along)
  return grid.transpose(*across, *along).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
  """Returns the numbers of `[4,2]T(1,0)`: from 0 in that shape, transposed, then flat."""
  found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  assert found is not None, text
  shape, transpose = found.groups()
  sizes = [int(size) for size in shape.split(",")]
  grid = np.arange(math.prod(sizes)).reshape(sizes)
  return (grid.transpose([int(i) for i in transpose.split(",")]) if transpose else grid).reshape(-1)


def spanned_axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the mesh axes along which the members of a group differ; devices are numbered in mesh order.

  >>> spanned_axes(np.array([[0, 1], [2, 3]]), {"fsdp": 2, "tensor": 2})
  ('tensor',)
  """
  if not groups.size:
    return ("?",)
  coordinates = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # axes groups members
  return tuple(
    axis
    for axis, of_axis in zip(mesh, coordinates, strict=True)
    if np.any(of_axis != of_axis[:, :1])
  )
