"""What a compiled program does, read from its HLO text: collectives, loops, memory traffic.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here every computation is counted as
often as it is executed: the number of turns of a loop is read from its condition, where the compiler left a constant
(`lax.scan` always gives one).
"""

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

BITS = {"pred": 8, "s4": 4, "u4": 4, "token": 0}
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
  "send",
)
"""`send` goes over the data-centre network between slices."""
FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"),
  *("while", "conditional", "call", "opt-barrier", "iota"),
}
"""Operations that move nothing themselves."""


@dataclasses.dataclass(frozen=True)
class Op:
  """An instruction; `shape` is its type as text, `operands` are the names of those of its computation."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def called(self) -> tuple[str, ...]:
    """Computations that this one runs once, other than those of a loop."""
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
    """Where in the traced program it comes from, e.g. "jit(sft_step)/loss_chunks/while"."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange between chips, as often as it runs."""

  kind: str
  axes: tuple[str, ...]
  """Mesh axes along which it goes; "?" where its groups are no such lines."""
  bytes: int
  """That a chip puts on the wire each time."""
  runs: int
  scopes: tuple[str, ...]
  """Where it comes from: scopes of the loops that it stands in, from the outermost, then its own."""

  @property
  def total_bytes(self) -> int:
    return self.bytes * self.runs

  def stands_in(self, scope: str) -> bool:
    """Whether it runs inside a loop of the scope of this name."""
    return any(is_loop_of(scope, found.partition("/body")[0]) for found in self.scopes)


def is_loop_of(scope: str, path: str) -> bool:
  """Whether a path of scopes is that of a loop of `scope` itself, forwards or backwards.

  >>> [is_loop_of("chunks", f"jit(f)/{path}") for path in ("jvp(chunks)/while", "jvp(chunks)/while/body/while")]
  [True, False]
  """
  return re.search(rf"\b{scope}\)*/while$", path) is not None


class Hlo:
  """The optimised HLO of a program for one chip."""

  def __init__(self, text: str, turns: Mapping[str, int] | None = None):
    """`turns`: name of a scope -> how often loops in it run, whose end is data."""
    self._turns = turns or {}
    self.computations = dict(_computations(text))
    entry = re.search(r"^ENTRY %([\w.\-]+)", text, re.MULTILINE)
    if entry is None:
      raise ValueError("the text has no ENTRY computation; give `compiled.as_text()`")
    self.runs: Mapping[str, int] = defaultdict(int)
    self.scopes: dict[str, tuple[str, ...]] = {}
    self._follow(entry[1], 1, ())

  def _follow(self, name: str, runs: int, scopes: tuple[str, ...]) -> None:
    self.runs[name] += runs
    self.scopes.setdefault(name, scopes)
    for op in self.computations[name]:
      if op.opcode == "while":
        turns, body = self.turns(op), _attribute(op, "body")
        self._follow(body, runs * turns, (*scopes, op.scope))
      for called in op.called:
        self._follow(called, runs, scopes)

  def turns(self, loop: Op) -> int:
    """How often the body of a `while` runs; 1 where nothing tells."""
    for scope, turns in self._turns.items():
      if is_loop_of(scope, loop.scope):
        return turns
    condition = self.computations[_attribute(loop, "condition")]
    reached = [condition, *(self.computations[name] for op in condition for name in op.called)]
    constants = [
      int(op.attributes)
      for op in (op for ops in reached for op in ops)
      if op.opcode == "constant"
      and re.fullmatch(r"s32\[\]\S*", op.shape)
      and op.attributes.isdigit()
    ]
    return max(constants, default=1)

  def collectives(self, mesh: Mapping[str, int]) -> list[Collective]:
    """All exchanges over a mesh of these sizes.

    One that the compiler has spread over several fusions (they have one channel) counts once.
    """
    found: dict[tuple, Collective] = {}
    for name, ops in self.computations.items():
      for op in ops if self.runs[name] else ():
        kind = op.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
          continue
        groups = replica_groups(op.attributes, math.prod(mesh.values()))
        channel = re.search(r"channel_id=(\d+)", op.attributes)
        found.setdefault(
          (kind, channel[1] if channel else (name, op.name)),
          Collective(
            kind,
            ("slice",) if kind == "send" else axes_of(groups, mesh),
            self._wire_bytes(name, op, kind, groups),
            self.runs[name],
            (*self.scopes[name], op.scope),
          ),
        )
    return list(found.values())

  def _wire_bytes(self, computation: str, op: Op, kind: str, groups: np.ndarray) -> int:
    """Bytes that one chip sends, by ring algorithms over a group of n."""
    n = groups.shape[1] if groups.size else 1
    operands = sum(shape_bytes(self.shape(computation, name)) for name in op.operands)
    share = (n - 1) / n
    return round(
      {
        "all-gather": operands * (n - 1),
        "all-reduce": 2 * shape_bytes(op.shape) * share,  # operands may be wider than what is sent
        "reduce-scatter": operands * share,
        "all-to-all": operands * share,
        "collective-permute": operands,
        "send": operands,
      }[kind]
    )

  def shape(self, computation: str, name: str) -> str:
    return self._ops[computation][name].shape

  def memory_bytes(self) -> int:
    """Bytes that one chip reads from and writes to its HBM: results and operands of all operations outside fusions.

    Of an array of which a fusion only takes slices, or changes a slice in place, the slices count. What the compiler
    has put into vector memory (space 1) does not.
    """
    fused = {
      name
      for ops in self.computations.values()
      for op in ops
      for name in op.called
      if op.opcode == "fusion"
    }
    return sum(
      self.runs[name] * sum(self._traffic(name, op) for op in ops)
      for name, ops in self.computations.items()
      if self.runs[name] and name not in fused
    )

  def _traffic(self, computation: str, op: Op) -> int:
    if op.opcode in FREE or op.opcode.endswith("-done"):
      return 0
    shapes = [self.shape(computation, name) for name in op.operands]
    if op.opcode == "fusion":
      return self._fusion_traffic(op, shapes)
    if op.opcode in ("dynamic-slice", "slice", "gather"):
      return 2 * shape_bytes(op.shape, hbm=True)
    if op.opcode == "dynamic-update-slice":
      return 2 * shape_bytes(shapes[1], hbm=True)
    return sum(shape_bytes(shape, hbm=True) for shape in (op.shape, *shapes))

  def _fusion_traffic(self, fusion: Op, shapes: Sequence[str]) -> int:
    inside = fusion.called[0]
    parameters = {
      op.attributes: op.name for op in self.computations[inside] if op.opcode == "parameter"
    }
    read = sum(
      self._read(inside, parameters[str(number)], whole)
      for number, shape in enumerate(shapes)
      if (whole := shape_bytes(shape, hbm=True))
    )
    written = shape_bytes(fusion.shape, hbm=True)
    root = self.computations[inside][-1]
    return read + min(written, self._written(inside, root.name))

  def _read(self, computation: str, name: str, whole: int) -> int:
    """Bytes that a fused computation reads of an array of `whole` bytes: of slices, what they take."""
    total = 0
    for user in self._users[computation][name]:
      if user.opcode in ("dynamic-slice", "gather"):
        total += shape_bytes(user.shape)
      elif user.opcode == "bitcast":
        total += self._read(computation, user.name, whole)
      elif user.opcode == "fusion":
        inside = user.called[0]
        number = str(user.operands.index(name))
        [parameter] = [
          op.name
          for op in self.computations[inside]
          if op.opcode == "parameter" and op.attributes == number
        ]
        total += self._read(inside, parameter, whole)
      elif user.opcode != "dynamic-update-slice" or name in user.operands[1:]:
        return whole  # an array that is changed in place is not read
    return min(total, whole)

  def _written(self, computation: str, name: str) -> int:
    """Bytes that a fused computation writes as its result `name`: where it changes a slice in place, those of it."""
    op = self._ops[computation][name]
    if op.opcode == "dynamic-update-slice":
      return shape_bytes(self.shape(computation, op.operands[1]))
    if op.opcode == "fusion":
      return self._written(op.called[0], self.computations[op.called[0]][-1].name)
    if op.opcode in ("tuple", "bitcast"):
      return sum(self._written(computation, operand) for operand in op.operands)
    return shape_bytes(op.shape)

  @functools.cached_property
  def _ops(self) -> dict[str, dict[str, Op]]:
    return {name: {op.name: op for op in ops} for name, ops in self.computations.items()}

  @functools.cached_property
  def _users(self) -> Mapping[str, Mapping[str, list[Op]]]:
    users = {name: defaultdict(list) for name in self.computations}
    for name, ops in self.computations.items():
      for op in ops:
        for operand in dict.fromkeys(op.operands):
          users[name][operand].append(op)
    return users


def _attribute(op: Op, key: str) -> str:
  found = re.search(rf"{key}=%([\w.\-]+)", op.attributes)
  if found is None:
    raise ValueError(f"the loop {op.name} names no {key}")
  return found[1]


def _computations(text: str) -> Iterator[tuple[str, list[Op]]]:
  name, ops = "", []
  for line in text.splitlines():
    if header := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{\s*$", line):
      name, ops = header[1], []
    elif line.startswith("}"):
      yield name, ops
    elif (op := _op(line)) is not None:
      ops.append(op)


def _op(line: str) -> Op | None:
  head = re.match(r"\s+(?:ROOT )?%([\w.\-]+) = ", line)
  if head is None:
    return None
  start = head.end()
  end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
  opening = line.index("(", end)
  closing = _closing(line, opening)
  opcode, inside = line[end:opening].strip(), line[opening + 1 : closing]
  plain = opcode in ("constant", "parameter", "iota")
  return Op(
    name=head[1],
    shape=line[start:end],
    opcode=opcode,
    operands=() if plain else tuple(re.findall(r"%([\w.\-]+)", inside)),
    attributes=inside if plain else line[closing + 1 :],
  )


def _closing(text: str, opening: int) -> int:
  depth = 0
  for place in range(opening, len(text)):
    depth += {"(": 1, ")": -1}.get(text[place], 0)
    if depth == 0:
      return place
  raise ValueError(f"unbalanced parentheses in {text[:100]!r}")


def shape_bytes(shape: str, hbm: bool = False) -> int:
  """Bytes of an array, or of all arrays of a tuple; with `hbm`, of those that lie in HBM (no space, or 0).

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
  return BITS[dtype] if dtype in BITS else int(re.search(r"\d+", dtype)[0])  # f8e4m3fn: 8


def replica_groups(attributes: str, chips: int) -> np.ndarray:
  """Int[groups, members]: numbers of the partitions that exchange with each other; empty where none are named.

  Three notations: lists, `[8,8]<=[64]T(…)`, and axes of a mesh.

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
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
    order = re.search(r"<=(\[[\d,]+\](?:T\([\d,]+\))?)", found[2])
    grid = (_iota(order[1]) if order else np.arange(math.prod(sizes.values()))).reshape(
      [*sizes.values()]
    )
    along = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", found[3])]
    across = [i for i in range(grid.ndim) if i not in along]
    members = math.prod(grid.shape[i] for i in along)
    return grid.transpose(*across, *along).reshape(-1, members)
  if found := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes):
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1])
    return np.array([[int(a), int(b)] for a, b in pairs])
  return np.arange(chips)[None] if "replica_groups={}" in attributes else np.zeros((0, 1), int)


def _iota(text: str) -> np.ndarray:
  """`[4,2]T(1,0)`: the numbers from 0 in that shape, transposed; flat."""
  shape, transpose = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
  sizes = [int(size) for size in shape.split(",")]
  grid = np.arange(math.prod(sizes)).reshape(sizes)
  return (grid.transpose([int(i) for i in transpose.split(",")]) if transpose else grid).reshape(-1)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Mesh axes along which the members of a group differ, the mesh being numbered in order.

  >>> axes_of(np.array([[0, 1], [2, 3]]), {"fsdp": 2, "tensor": 2})
  ('tensor',)
  """
  if not groups.size:
    return ("?",)
  places = np.stack(np.unravel_index(groups, tuple(mesh.values())))  # axes groups members
  return tuple(
    axis for axis, of_axis in zip(mesh, places, strict=True) if np.any(of_axis != of_axis[:, :1])
  )
