"""How fast a teacher is asked: so many questions at once, so many a minute, and none while it asks for patience."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.local.faults import fraction


@dataclasses.dataclass(frozen=True)
class Pace:
  """What is allowed, and how a question that failed is tried again."""

  concurrency: int
  requests_per_minute: float
  tries: int
  """Of one question within one start."""
  first_delay_s: float
  """Before the second try; doubled before each further one."""
  max_delay_s: float

  def __post_init__(self):
    if min(self.concurrency, self.tries) < 1 or self.requests_per_minute <= 0:
      raise UsageError(
        f"concurrency is {self.concurrency}, tries is {self.tries} and requests_per_minute is "
        f"{self.requests_per_minute}; give at least 1, 1 and more than 0"
      )
    if not 0 <= self.first_delay_s <= self.max_delay_s:
      raise UsageError(
        f"first_delay_s is {self.first_delay_s} and max_delay_s is {self.max_delay_s}; give rising times from 0 on"
      )

  def delay_s(self, key: str, tries: int) -> float:
    """Wait after try number `tries` (from 1): exponential, and spread from a half to the whole of it, so that questions
    that failed together do not return together."""
    longest = min(self.first_delay_s * 2 ** (tries - 1), self.max_delay_s)
    return longest * (1 + fraction("delay", key, tries)) / 2


class Limiter:
  """Turns for requests of one event loop."""

  def __init__(self, pace: Pace):
    self._interval_s = 60 / pace.requests_per_minute
    self._slots = asyncio.Semaphore(pace.concurrency)
    self._next_s = 0.0
    """Of the monotonic clock: when the next request may leave."""

  @contextlib.asynccontextmanager
  async def turn(self) -> AsyncIterator[None]:
    """Around one request; begins when it may leave."""
    async with self._slots:
      while (wait_s := self._next_s - time.monotonic()) > 0:
        await asyncio.sleep(wait_s)
      self._next_s = max(self._next_s, time.monotonic()) + self._interval_s
      yield

  def pause(self, seconds: float) -> None:
    """No request leaves before so many seconds have passed."""
    self._next_s = max(self._next_s, time.monotonic() + seconds)
