"""A compiled program, read from its HLO text: how often each computation runs, and in which loops.

XLA's own cost analysis counts the body of a loop once, whatever its trip count. Here every computation counts as often
as it runs: a loop's trip count is read from its condition, where the compiler left a constant (`lax.scan` always gives
one).
"""

import functools
import re
from collections import defaultdict
from collections.abc import Mapping

from spatial_vlm.planning.hlo_text import Op, entry_computation, parse_computations


class Hlo:
  """The optimised HLO of a program, as one chip runs it.

  Attributes:
    computations: name → operations.
    runs: name → how often the computation runs.
    scopes: name → scopes of the loops around it, from the outermost.
  """

  def __init__(self, text: str, trip_counts: Mapping[str, int] | None = None):
    """Parses `compiled.as_text()`.

    Args:
      text: the module.
      trip_counts: scope → trip count of its loops, for loops whose end depends on data.
    """
    self._trip_counts = trip_counts or {}
    self.computations = dict(parse_computations(text))
    self.runs: dict[str, int] = defaultdict(int)
    self.scopes: dict[str, tuple[str, ...]] = {}
    self._visit(entry_computation(text), 1, ())

  def _visit(self, name: str, runs: int, scopes: tuple[str, ...]) -> None:
    self.runs[name] += runs
    self.scopes.setdefault(name, scopes)
    for op in self.computations[name]:
      if op.opcode == "while":
        self._visit(op.computation("body"), runs * self.trip_count(op), (*scopes, op.scope))
      for called in op.called:
        self._visit(called, runs, scopes)

  def trip_count(self, loop: Op) -> int:
    """Returns how often the body of a `while` runs; 1 if neither `trip_counts` nor its condition tells."""
    for scope, count in self._trip_counts.items():
      if is_loop_of(scope, loop.scope):
        return count
    condition = self.computations[loop.computation("condition")]
    reached = [condition, *(self.computations[name] for op in condition for name in op.called)]
    constants = [
      int(op.attributes)
      for op in (op for ops in reached for op in ops)
      if op.opcode == "constant"
      and re.fullmatch(r"s32\[\]\S*", op.shape)
      and op.attributes.isdigit()
    ]
    return max(constants, default=1)

  @functools.cached_property
  def ops(self) -> dict[str, dict[str, Op]]:
    """Computation → name → operation."""
    return {name: {op.name: op for op in ops} for name, ops in self.computations.items()}

  @functools.cached_property
  def parameters(self) -> dict[str, dict[int, str]]:
    """Computation → number of a parameter → its name."""
    return {
      name: {int(op.attributes): op.name for op in ops if op.opcode == "parameter"}
      for name, ops in self.computations.items()
    }

  @functools.cached_property
  def users(self) -> Mapping[str, Mapping[str, list[Op]]]:
    """Computation → name → operations that read its result."""
    users = {name: defaultdict(list) for name in self.computations}
    for name, ops in self.computations.items():
      for op in ops:
        for operand in dict.fromkeys(op.operands):
          users[name][operand].append(op)
    return users


def is_loop_of(scope: str, path: str) -> bool:
  """Returns whether a name-stack path is that of a loop of `scope` itself, in the forward or backward pass.

  >>> [is_loop_of("chunks", f"jit(f)/{path}") for path in ("jvp(chunks)/while", "jvp(chunks)/while/body/while")]
  [True, False]
  """
  return re.search(rf"\b{scope}\)*/while$", path) is not None
