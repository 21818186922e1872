"""What every extractor of behaviors is given, and what it returns."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.embedding.embedder import Embedder
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.statements.relation_keys import relation_key


class TextQuestion(NamedTuple):
  """A question to a teacher that needs no image."""

  system: str
  text: str
  schema: dict[str, Any] | None = None
  """JSON schema of the answer; None for plain text."""
  attempt: int = 0
  """A higher number draws another answer to the same question."""


Ask = Callable[[Sequence[TextQuestion]], list[str | None]]
"""Answers questions in their order; None where no usable answer came."""


@dataclasses.dataclass(frozen=True)
class ExtractionSettings:
  """Settings of all extractors; each reads those that it needs."""

  count_tokens: Callable[[str], int]
  """Length of a text under the tokenizer of the policy that reads the behaviors."""
  min_support: int
  """Chains that must agree on a behavior."""
  max_tokens: int
  """Most tokens of the line of a behavior; a longer one is refused."""
  embedder: Embedder
  cluster_similarity: float
  """Least mean similarity of two reasonings of one cluster."""
  duplicate_similarity: float
  """Least similarity of the instructions of two behaviors that are one (see `merging.merge_similar`)."""
  teacher_chains: int
  """Most chains of one relation that a teacher is asked about."""
  ask: Ask | None = None
  """Asks the teacher; None without one."""
  refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Filled by the extractor: reason → chains and candidates that gave no behavior."""

  def __post_init__(self):
    if self.min_support < 1:
      raise ValueError(f"min_support is {self.min_support}; a behavior needs at least 1 chain")


Extractor = Callable[[Sequence[Solution], ExtractionSettings], list[Behavior]]
"""Returns the behaviors of some solutions; wrong chains (see `chain_check`) are skipped."""


def relation_of(solution: Solution) -> str:
  """Returns the relation key of a solution's caption; "" for a caption that cannot be read."""
  return relation_key(solution.caption) or ""
