"""HBM traffic of a compiled program: bytes that its operations read and write."""

from collections.abc import Sequence

from spatial_vlm.planning.hlo import Hlo
from spatial_vlm.planning.hlo_text import Op, shape_bytes

NO_TRAFFIC = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
  *("while", "conditional", "call", "opt-barrier", "iota"),
}
"""Opcodes that move nothing themselves."""


def hbm_traffic(hlo: Hlo) -> int:
  """Returns the bytes that one chip reads from and writes to its HBM.

  These are the results and operands of all operations outside fusions. If a fusion only takes slices of an array, or
  updates a slice in place, the slices count. Arrays that the compiler placed in vector memory (space 1) do not count.
  """
  fused = {
    name
    for ops in hlo.computations.values()
    for op in ops
    for name in op.called
    if op.opcode == "fusion"
  }
  return sum(
    hlo.runs[name] * sum(_traffic(hlo, name, op) for op in ops)
    for name, ops in hlo.computations.items()
    if hlo.runs[name] and name not in fused
  )


def _traffic(hlo: Hlo, computation: str, op: Op) -> int:
  if op.opcode in NO_TRAFFIC or op.opcode.endswith("-done"):
    return 0
  shapes = [hlo.ops[computation][name].shape for name in op.operands]
  if op.opcode == "fusion":
    return _fusion_traffic(hlo, op, shapes)
  if op.opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * shape_bytes(op.shape, hbm=True)
  if op.opcode == "dynamic-update-slice":
    return 2 * shape_bytes(shapes[1], hbm=True)
  return sum(shape_bytes(shape, hbm=True) for shape in (op.shape, *shapes))


def _fusion_traffic(hlo: Hlo, fusion: Op, shapes: Sequence[str]) -> int:
  inside = fusion.called[0]
  read = sum(
    _read(hlo, inside, hlo.parameters[inside][number], whole)
    for number, shape in enumerate(shapes)
    if (whole := shape_bytes(shape, hbm=True))
  )
  written = shape_bytes(fusion.shape, hbm=True)
  root = hlo.computations[inside][-1]
  return read + min(written, _written(hlo, inside, root.name))


def _read(hlo: Hlo, computation: str, name: str, whole: int) -> int:
  """Returns the bytes that a fused computation reads of an array of `whole` bytes.

  If it only takes slices, their bytes count.
  """
  total = 0
  for user in hlo.users[computation][name]:
    if user.opcode in ("dynamic-slice", "gather"):
      total += shape_bytes(user.shape)
    elif user.opcode == "bitcast":
      total += _read(hlo, computation, user.name, whole)
    elif user.opcode == "fusion":
      inside = user.called[0]
      total += _read(hlo, inside, hlo.parameters[inside][user.operands.index(name)], whole)
    elif user.opcode != "dynamic-update-slice" or name in user.operands[1:]:
      return whole  # an array that is updated in place is not read
  return min(total, whole)


def _written(hlo: Hlo, computation: str, name: str) -> int:
  """Returns the bytes that a fused computation writes as its result `name`.

  If it updates a slice in place, the bytes of the slice count.
  """
  op = hlo.ops[computation][name]
  if op.opcode == "dynamic-update-slice":
    return shape_bytes(hlo.ops[computation][op.operands[1]].shape)
  if op.opcode == "fusion":
    return _written(hlo, op.called[0], hlo.computations[op.called[0]][-1].name)
  if op.opcode in ("tuple", "bitcast"):
    return sum(_written(hlo, computation, operand) for operand in op.operands)
  return shape_bytes(op.shape)
