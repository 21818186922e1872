"""Limits the rate of requests and computes the delays between retries."""

import asyncio
import contextlib
import dataclasses
import math
import time
from collections.abc import AsyncIterator

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.hashing import hash_fraction


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """Rate limits and retry policy; raises UsageError for values that cannot work."""

  concurrency: int | None
  """Requests in flight; None derives it from the time of an answer, so that the rate limit is reached."""
  max_concurrency: int
  """Upper limit of a derived concurrency."""
  requests_per_minute: float
  max_tries: int
  """Tries of one question within one start."""
  initial_delay_s: float
  """Delay before the second try; it doubles before each further try."""
  max_delay_s: float

  def __post_init__(self):
    if min(self.most_in_flight, self.max_concurrency, self.max_tries) < 1:
      raise UsageError(
        f"concurrency is {self.concurrency}, max_concurrency is {self.max_concurrency} and max_tries is "
        f"{self.max_tries}; give at least 1 each (concurrency=none derives it)"
      )
    if self.requests_per_minute <= 0:
      raise UsageError(f"requests_per_minute is {self.requests_per_minute}; give more than 0")
    if not 0 <= self.initial_delay_s <= self.max_delay_s:
      raise UsageError(
        f"initial_delay_s is {self.initial_delay_s} and max_delay_s is {self.max_delay_s}; give "
        "0 <= initial_delay_s <= max_delay_s"
      )

  @property
  def most_in_flight(self) -> int:
    """Most requests that can be in flight."""
    return self.max_concurrency if self.concurrency is None else self.concurrency

  def retry_delay_s(self, key: str, tries: int) -> float:
    """Returns the delay after try number `tries` (from 1): exponential backoff with jitter.

    The jitter, a factor from ½ to 1 that depends on the key, keeps questions that failed together from returning
    together.
    """
    longest = min(self.initial_delay_s * 2 ** (tries - 1), self.max_delay_s)
    return longest * (1 + hash_fraction("delay", key, tries)) / 2


_MIN_DERIVED = 8
"""A derived concurrency starts here."""
_HEADROOM = 1.25
"""Answers vary in time; so many times the mean are in flight."""
_SMOOTHING = 0.1
"""Weight of the newest answer in the mean time of an answer."""
_RECHECK_S = 0.05


class RateLimiter:
  """Admits the requests of one event loop at the allowed rate, in the order in which they come.

  By Little's law, a rate of r requests a second with answers of t seconds keeps r·t requests in flight.
  """

  def __init__(self, limits: RequestLimits):
    self._limits = limits
    self._interval_s = 60 / limits.requests_per_minute
    self._door = asyncio.Lock()
    self._freed = asyncio.Event()
    self._in_flight = 0
    self._next_s = 0.0
    """Earliest start of the next request, on the monotonic clock."""
    self._first_s: float | None = None
    """Start of the first request."""
    self._answer_s: float | None = None
    """Mean time of an answer."""

  @property
  def allowed_in_flight(self) -> int:
    """Number of requests that may be in flight now."""
    if self._limits.concurrency is not None:
      return self._limits.concurrency
    answer_s = self._answer_s
    if answer_s is None:  # Until the first answer comes, its time is at least what has passed.
      answer_s = time.monotonic() - self._first_s if self._first_s is not None else 0.0
    needed = math.ceil(_HEADROOM * answer_s / self._interval_s)
    return min(max(needed, _MIN_DERIVED), self._limits.max_concurrency)

  def observe(self, answer_s: float) -> None:
    """Records the time that an answer took."""
    before = answer_s if self._answer_s is None else self._answer_s
    self._answer_s = before + _SMOOTHING * (answer_s - before)

  @contextlib.asynccontextmanager
  async def slot(self) -> AsyncIterator[None]:
    """Holds a slot for one request; the body starts when the request may be sent."""
    async with self._door:
      while self._in_flight >= self.allowed_in_flight:
        self._freed.clear()
        with contextlib.suppress(TimeoutError):
          await asyncio.wait_for(self._freed.wait(), _RECHECK_S)
      while (wait_s := self._next_s - time.monotonic()) > 0:
        await asyncio.sleep(wait_s)
      self._next_s = max(self._next_s, time.monotonic()) + self._interval_s
      self._first_s = time.monotonic() if self._first_s is None else self._first_s
      self._in_flight += 1
    try:
      yield
    finally:
      self._in_flight -= 1
      self._freed.set()

  def pause(self, seconds: float) -> None:
    """Delays all further requests by at least `seconds`."""
    self._next_s = max(self._next_s, time.monotonic() + seconds)
