"""How the local server misbehaves: what goes wrong with which request, by numbers alone, for runs to be replayed."""

import dataclasses
import hashlib

from spatial_vlm.config import UsageError

TRANSIENT = ("rate_limited", "internal_error", "unavailable", "slow", "cut", "truncated_body")
"""Of the way to an answer: another try may get through."""
ANSWER = ("fenced", "max_tokens", "safety", "blocked_prompt", "other_version")
"""Of the answer itself: the same request gets the same."""
ROW = ("row_failed", "row_missing")
JOB = ("job_failed", "job_expired")


@dataclasses.dataclass(frozen=True)
class Faults:
  """Shares of requests that go wrong, one way at most; without any, the server behaves."""

  rate_limited: float = 0.0
  """429, with Retry-After."""
  internal_error: float = 0.0
  """500."""
  unavailable: float = 0.0
  """503."""
  slow: float = 0.0
  """The answer trickles in over `slow_s`."""
  cut: float = 0.0
  """The connection ends in the middle of the answer, which is billed."""
  truncated_body: float = 0.0
  """The answer, billed, is the first half of its JSON."""

  fenced: float = 0.0
  """The text stands in a Markdown fence."""
  max_tokens: float = 0.0
  """The text breaks off in the middle."""
  safety: float = 0.0
  """Nothing is written, for SAFETY."""
  blocked_prompt: float = 0.0
  """The question is refused before anything is written."""
  other_version: float = 0.0
  """Another version of the model answers."""

  row_failed: float = 0.0
  """Of the rows of a batch: an error instead of an answer."""
  row_missing: float = 0.0
  """Of the rows of a batch: not among the results."""
  job_failed: float = 0.0
  """Of whole batches."""
  job_expired: float = 0.0
  """Of whole batches."""
  rows_shuffled: bool = False
  """Whether the results of a batch come out of order."""

  retry_after_s: float = 1.0
  slow_s: float = 5.0
  clears_after: int = 2
  """Tries of one request, or of one row of a batch, after which nothing transient happens to it any more."""

  def __post_init__(self):
    for names in (TRANSIENT, ANSWER, ROW, JOB):
      shares = {name: getattr(self, name) for name in names}
      if min(shares.values()) < 0 or sum(shares.values()) > 1:
        raise UsageError(
          f"shares are {shares}; none may be below 0, and together they are 1 at most"
        )

  def draw(self, kinds: tuple[str, ...], *identity: object) -> str | None:
    """Which of the kinds happens to what these values identify; None for most."""
    value = fraction(*identity)
    for kind in kinds:
      value -= getattr(self, kind)
      if value < 0:
        return kind
    return None


def fraction(*identity: object) -> float:
  """A number in [0, 1) that depends on these values alone."""
  digest = hashlib.sha256("\0".join(map(str, identity)).encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
