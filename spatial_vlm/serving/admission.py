"""Places in the queue and time limits of requests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from spatial_vlm.serving.api_error import ApiError

RETRY_AFTER_S = 1
"""Seconds after which a refused client may try again."""


class Admission:
  """Bounds the answers that are written or wait, and their times; used in one event loop.

  Args:
    most: answers at a time.
  """

  def __init__(self, most: int):
    self.most = most
    self._places = 0
    self._ending = False
    self._deadlines: set[asyncio.Timeout] = set()

  @contextlib.contextmanager
  def places(self, count: int) -> Iterator[None]:
    """Holds places in the queue, one for each answer; ApiError 429 if there are fewer."""
    if self._places + count > self.most:
      raise ApiError(
        429,
        f"{self._places} answers are written or wait, and the limit is {self.most}; try again later",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(RETRY_AFTER_S)},
      )
    self._places += count
    try:
      yield
    finally:
      self._places -= count

  @contextlib.asynccontextmanager
  async def time_limit(self, seconds: float) -> AsyncIterator[None]:
    """Raises TimeoutError after these seconds; `interrupt` raises it at once, as ApiError 503."""
    if self._ending:
      raise _ends()
    try:
      async with asyncio.timeout(seconds) as deadline:
        self._deadlines.add(deadline)
        try:
          yield
        finally:
          self._deadlines.discard(deadline)
    except TimeoutError:
      if self._ending:
        raise _ends() from None
      raise

  def interrupt(self) -> None:
    """Ends all requests with ApiError 503, later ones too; called in the event loop when the server shuts down."""
    self._ending = True
    now = asyncio.get_running_loop().time()
    for deadline in self._deadlines:
      if not deadline.expired():
        deadline.reschedule(now)


def _ends() -> ApiError:
  return ApiError(503, "the server shuts down; ask again when it runs", code="shutting_down")
