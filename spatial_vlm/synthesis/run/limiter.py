"""Limits the rate of requests and computes the delays between retries."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.hashing import hash_fraction


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """Rate limits and retry policy; raises UsageError for values that cannot work."""

  concurrency: int
  """Requests in flight."""
  requests_per_minute: float
  max_tries: int
  """Tries of one question within one start."""
  initial_delay_s: float
  """Delay before the second try; it doubles before each further try."""
  max_delay_s: float

  def __post_init__(self):
    if min(self.concurrency, self.max_tries) < 1 or self.requests_per_minute <= 0:
      raise UsageError(
        f"concurrency is {self.concurrency}, max_tries is {self.max_tries} and requests_per_minute is "
        f"{self.requests_per_minute}; give at least 1, at least 1 and more than 0"
      )
    if not 0 <= self.initial_delay_s <= self.max_delay_s:
      raise UsageError(
        f"initial_delay_s is {self.initial_delay_s} and max_delay_s is {self.max_delay_s}; give "
        "0 <= initial_delay_s <= max_delay_s"
      )

  def retry_delay_s(self, key: str, tries: int) -> float:
    """Returns the delay after try number `tries` (from 1): exponential backoff with jitter.

    The jitter, a factor from ½ to 1 that depends on the key, keeps questions that failed together from returning
    together.
    """
    longest = min(self.initial_delay_s * 2 ** (tries - 1), self.max_delay_s)
    return longest * (1 + hash_fraction("delay", key, tries)) / 2


class RateLimiter:
  """Admits the requests of one event loop at the allowed rate."""

  def __init__(self, limits: RequestLimits):
    self._interval_s = 60 / limits.requests_per_minute
    self._slots = asyncio.Semaphore(limits.concurrency)
    self._next_s = 0.0
    """Earliest start of the next request, on the monotonic clock."""

  @contextlib.asynccontextmanager
  async def slot(self) -> AsyncIterator[None]:
    """Holds a slot for one request; the body starts when the request may be sent."""
    async with self._slots:
      while (wait_s := self._next_s - time.monotonic()) > 0:
        await asyncio.sleep(wait_s)
      self._next_s = max(self._next_s, time.monotonic()) + self._interval_s
      yield

  def pause(self, seconds: float) -> None:
    """Delays all further requests by at least `seconds`."""
    self._next_s = max(self._next_s, time.monotonic() + seconds)
