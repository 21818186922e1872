"""Parser of HLO text: computations, their operations, and the bytes of a shape."""

import dataclasses
import math
import re
from collections.abc import Iterator

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
"""Element types whose name does not tell their width, or whose storage differs from it."""


@dataclasses.dataclass(frozen=True)
class Op:
  """One HLO instruction."""

  name: str
  shape: str
  """Its type, as text."""
  opcode: str
  operands: tuple[str, ...]
  """Names of instructions of the same computation."""
  attributes: str
  """The text after the operands; of a constant or parameter, the text in its parentheses."""

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations that this instruction runs once, loop bodies excluded."""
    single = re.findall(
      r"(?:calls|true_computation|false_computation)=%([\w.\-]+)", self.attributes
    )
    several = re.findall(r"(?:branch|called)_computations=\{([^}]*)\}", self.attributes)
    of_call = re.findall(r"to_apply=%([\w.\-]+)", self.attributes) if self.opcode == "call" else []
    return (
      *single,
      *of_call,
      *(name for group in several for name in re.findall(r"%([\w.\-]+)", group)),
    )

  @property
  def scope(self) -> str:
    """Name-stack path of its origin in the traced program, e.g. "jit(sft_step)/loss_chunks/while"."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""

  def computation(self, key: str) -> str:
    """Returns the name of the computation that a loop names as `key` ("body" or "condition")."""
    found = re.search(rf"{key}=%([\w.\-]+)", self.attributes)
    if found is None:
      raise ValueError(f"the loop {self.name} names no {key}")
    return found[1]


def parse_computations(text: str) -> Iterator[tuple[str, list[Op]]]:
  """Yields the name and the operations of each computation of an HLO module."""
  name, ops = "", []
  for line in text.splitlines():
    if header := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$", line):
      name, ops = header[1], []
    elif line.startswith("}"):
      yield name, ops
    elif (op := _parse_op(line)) is not None:
      ops.append(op)


def entry_computation(text: str) -> str:
  """Returns the name of the computation where the module starts."""
  entry = re.search(r"^ENTRY %([\w.\-]+)", text, re.MULTILINE)
  if entry is None:
    raise ValueError("the text has no ENTRY computation; give `compiled.as_text()`")
  return entry[1]


def shape_bytes(shape: str, hbm: bool = False) -> int:
  """Returns the bytes of an array, or of all arrays of a tuple; with `hbm`, only of those in HBM (memory space 0).

  >>> shape_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)})"), shape_bytes("bf16[8]{0:S(1)}", hbm=True)
  (68, 0)
  """
  total = 0
  for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
    if hbm and re.search(r"S\([1-9]\d*\)", layout):
      continue
    count = math.prod(int(size) for size in dims.split(",") if size)
    total += -(-count * _bits(dtype) // 8)
  return total


def _bits(dtype: str) -> int:
  if dtype in BITS:
    return BITS[dtype]
  found = re.search(r"\d+", dtype)  # f8e4m3fn: 8
  assert found is not None, dtype
  return int(found[0])


def _parse_op(line: str) -> Op | None:
  head = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
  if head is None:
    return None
  start = head.end()
  end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
  opening = line.index("(", end)
  closing = _closing(line, opening)
  opcode, inside = line[end:opening].strip(), line[opening + 1 : closing]
  is_leaf = opcode in ("constant", "parameter", "iota")
  return Op(
    name=head[1],
    shape=line[start:end],
    opcode=opcode,
    operands=() if is_leaf else tuple(re.findall(r"%([\w.\-]+)", inside)),
    attributes=inside if is_leaf else line[closing + 1 :],
  )


def _closing(text: str, opening: int) -> int:
  """Returns the index of the parenthesis that closes the one at `opening`."""
  depth = 0
  for place in range(opening, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if depth == 0:
      return place
  raise ValueError(f"unbalanced parentheses in {text[:100]!r}")
