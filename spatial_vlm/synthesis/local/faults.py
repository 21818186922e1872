"""Faults of the local server: a hash of each request decides which fault it meets, so that runs can be replayed."""

import dataclasses

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.hashing import hash_fraction

TRANSIENT = ("rate_limited", "internal_error", "unavailable", "slow", "cut", "truncated_body")
"""Faults of one try; another try may succeed."""
ANSWER = ("fenced", "max_tokens", "safety", "blocked_prompt", "other_version")
"""Faults of the answer; the same request always meets the same one."""
ROW = ("row_failed", "row_missing")
"""Faults of one row of a batch."""
JOB = ("job_failed", "job_expired")
"""Faults of a whole batch."""


@dataclasses.dataclass(frozen=True)
class Faults:
  """Share of requests that meet each fault; a request meets at most one of a kind. By default there are none."""

  rate_limited: float = 0.0
  """Status 429 with Retry-After."""
  internal_error: float = 0.0
  """Status 500."""
  unavailable: float = 0.0
  """Status 503."""
  slow: float = 0.0
  """The answer takes `slow_s` to arrive."""
  cut: float = 0.0
  """The connection closes in the middle of the answer, which is billed."""
  truncated_body: float = 0.0
  """The answer is the first half of its JSON, and is billed."""

  fenced: float = 0.0
  """The text is inside a Markdown fence."""
  max_tokens: float = 0.0
  """The text ends in the middle."""
  safety: float = 0.0
  """The text is empty, with finish reason SAFETY."""
  blocked_prompt: float = 0.0
  """The prompt is blocked."""
  other_version: float = 0.0
  """Another model version answers."""

  row_failed: float = 0.0
  """Rows of a batch with an error instead of an answer."""
  row_missing: float = 0.0
  """Rows of a batch that the results lack."""
  job_failed: float = 0.0
  """Batches that fail."""
  job_expired: float = 0.0
  """Batches that expire."""
  rows_shuffled: bool = False
  """Whether the results of a batch are shuffled."""

  retry_after_s: float = 1.0
  slow_s: float = 5.0
  clears_after: int = 2
  """Tries of one request, or of one row of a batch, after which it meets no transient fault any more."""

  def __post_init__(self):
    for names in (TRANSIENT, ANSWER, ROW, JOB):
      shares = {name: getattr(self, name) for name in names}
      if min(shares.values()) < 0 or sum(shares.values()) > 1:
        raise UsageError(
          f"shares are {shares}; none may be negative, and their sum may be at most 1"
        )

  def draw(self, kinds: tuple[str, ...], *identity: object) -> str | None:
    """Returns the fault among `kinds` that the request with this identity meets, or None."""
    value = hash_fraction(*identity)
    for kind in kinds:
      value -= getattr(self, kind)
      if value < 0:
        return kind
    return None
