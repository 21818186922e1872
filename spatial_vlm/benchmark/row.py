"""One measurement: a row of the table and of results.json."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self


class Spread(NamedTuple):
  """Median and extremes of several rounds."""

  median: float
  low: float
  high: float

  @classmethod
  def of(cls, values: Sequence[float]) -> Self:
    """Returns the spread of at least one value."""
    return cls(statistics.median(values), min(values), max(values))


PENDING = "did not finish"
"""Error of a measurement in progress; it stays if the process is killed."""


@dataclasses.dataclass(frozen=True)
class Row:
  """What a measurement gave; `error` says why one gave nothing, or what it found wrong."""

  model: str
  name: str
  seconds: Spread | None = None
  """Time of one run."""
  tokens: int = 0
  """Tokens that one run reads or writes, image tokens included."""
  flops: float = 0.0
  """Operations of one run, without recomputation in the backward pass."""
  bytes: float = 0.0
  """Fewest bytes that one run reads from memory; 0 where arithmetic is the limit."""
  peak_bytes: int = 0
  """Memory of arguments, results and temporaries of the compiled program."""
  compile_s: float = 0.0
  """Time to trace, lower and compile at a first start."""
  cached_compile_s: float = 0.0
  """The same with the persistent compilation cache."""
  limit_flops_per_s: float = 0.0
  """Measured peak of a matrix product."""
  limit_bytes_per_s: float = 0.0
  """Measured bandwidth of memory."""
  ratio: Spread | None = None
  """Time of transformers over ours, round by round."""
  note: str = ""
  error: str = ""

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> Self:
    """Reads what `dataclasses.asdict` gave, after a round trip through JSON."""
    spreads = {name: Spread(*fields[name]) for name in ("seconds", "ratio") if fields[name]}
    return cls(**{**fields, **spreads})

  @property
  def of_peak(self) -> float | None:
    """Share of the peak of matrix products that the operations reach (in training: MFU)."""
    if not (self.seconds and self.flops and self.limit_flops_per_s):
      return None
    return self.flops / self.seconds.median / self.limit_flops_per_s

  @property
  def of_limit(self) -> float | None:
    """Share of what the machine's limits allow: the larger of arithmetic and traffic, over the time."""
    if self.of_peak is None or self.seconds is None:
      return None
    return max(self.of_peak, self.bytes / self.limit_bytes_per_s / self.seconds.median)

  @property
  def key(self) -> tuple[str, str]:
    """Model and name; a later row of the same key replaces an earlier one."""
    return self.model, self.name

  @property
  def is_pending(self) -> bool:
    """Whether this is a measurement in progress."""
    return self.error == PENDING

  @property
  def summary(self) -> str:
    """The median time, or what there is instead."""
    if self.seconds is None:
      return f"ERROR: {self.error}" if self.error else self.note
    return f"{1e3 * self.seconds.median:.4g} ms"
