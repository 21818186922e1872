"""A behavior: a named one-line procedure with its relation, its sources and what its recalls brought."""

import dataclasses
import math
import re
from typing import Self

from spatial_vlm.evaluation.results import RecallCount

NAME = re.compile(r"behavior_[a-z0-9_]+")
"""Names of behaviors."""


@dataclasses.dataclass(frozen=True)
class Behavior:
  """A procedure that the policy used in many correct answers.

  Raises ValueError when a field cannot be used. A behavior without provenance is refused, because nothing could show
  that it is free of evaluation records.
  """

  name: str
  """`behavior_` and lower-case letters, digits and underscores; the short answer cites it."""
  instruction: str
  """The procedure, on one line."""
  relation: str
  """Key of the relation that it decides ("left of"); "" where the questions state none that is known."""
  questions: tuple[str, ...]
  """Object-masked questions that the behavior answers ("The X is left of the Y.")."""
  provenance: tuple[str, ...]
  """Training records from whose chains the behavior was extracted, written `SPLIT:ID:PAIR:CAPTION` with the
  `pair_digest` of image and caption, and of the caption alone, or `SPLIT:ID` where these are not known."""
  tokens: int
  """Length of `line`, in tokens of the policy that reads it."""
  recalls: int = 0
  """Number of times that `evaluate` recalled the behavior (see `Handbook.upsert`)."""
  successes: int = 0
  """Number of these recalls that were answered right."""
  saved_tokens: float = 0.0
  """Mean number of generated tokens that a recall saves: measured by `evaluate`, or else estimated from the chains."""

  def __post_init__(self):
    if not NAME.fullmatch(self.name):
      raise ValueError(
        f"name {self.name!r} does not match {NAME.pattern!r}; write it as behavior_left_of"
      )
    if not self.instruction.strip() or "\n" in self.instruction:
      raise ValueError(f"instruction {self.instruction!r} of {self.name} must be one line of text")
    if not self.questions or not all(self.questions):
      raise ValueError(f"{self.name} answers no question; give at least one object-masked question")
    if not self.provenance or not all(":" in record for record in self.provenance):
      raise ValueError(
        f"provenance of {self.name} must list records as 'SPLIT:ID'; got {self.provenance[:3]}"
      )
    if self.tokens < 1 or not 0 <= self.successes <= self.recalls:
      raise ValueError(
        f"{self.name} needs tokens ≥ 1 and 0 ≤ successes ≤ recalls; got tokens={self.tokens}, "
        f"successes={self.successes}, recalls={self.recalls}"
      )
    if not math.isfinite(self.saved_tokens):
      raise ValueError(f"saved_tokens of {self.name} is {self.saved_tokens}; it must be finite")

  @property
  def line(self) -> str:
    """The text that a question carries."""
    return f"{self.name}: {self.instruction}"

  @property
  def utility(self) -> float:
    """Generated tokens saved in right answers: recalls × success rate × saved tokens; 0 without a recall."""
    return self.successes * self.saved_tokens

  @property
  def rank(self) -> tuple[float, bool, int, int]:
    """Order in which behaviors are kept: by utility, then by support, then the shortest.

    A behavior that was never recalled stands below those that proved useful and above those whose recalls saved
    nothing, answered nothing right or made answers longer.
    """
    return self.utility, not self.recalls, len(self.provenance), -self.tokens

  def with_recalls(self, count: RecallCount) -> Self:
    """Returns the behavior with further recalls counted.

    Measured saved tokens replace an estimate, and are averaged with those of earlier recalls.
    """
    saved = self.saved_tokens if count.saved_tokens is None else count.saved_tokens
    recalls = self.recalls + count.recalls
    total = self.recalls * self.saved_tokens + count.recalls * saved
    return dataclasses.replace(
      self,
      recalls=recalls,
      successes=self.successes + count.successes,
      saved_tokens=total / recalls if recalls else saved,
    )
