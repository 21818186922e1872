"""HTTP connections of uvicorn that are bounded in number, and in the time until a request's head has arrived.

uvicorn's own `limit_concurrency` refuses requests in plain text and keeps idle connections, which would use up the
process's file descriptors.
"""

import asyncio
import functools
import json

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from spatial_vlm.serving.admission import RETRY_AFTER_S
from spatial_vlm.serving.api_error import ApiError

HEAD_TIMEOUT_S = 10.0
"""Longest time until the head of a request has arrived."""
REFUSED_S = 1.0
"""Time in which a refused client may read the error."""
MAX_REFUSED = 64
"""Refused clients at a time; the connections of more are closed without an answer."""


class BoundedConnection(H11Protocol):
  """Answers with status 503 if there are more than `limit_concurrency` connections, idle ones included."""

  def __init__(self, config: uvicorn.Config, *args, **kwargs):
    super().__init__(config, *args, **kwargs)
    self._most, self.limit_concurrency = config.limit_concurrency, None
    self._is_refused = False
    self._deadline: asyncio.TimerHandle | None = None

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    super().connection_made(transport)  # pyright: ignore[reportArgumentType]
    excess = len(self.connections) - self._most if self._most else 0
    if excess <= 0:
      self._watch_head()
    elif excess > MAX_REFUSED:
      self.transport.abort()
    else:
      self._is_refused = True
      self.transport.write(_refusal(self._most or 0))
      self._deadline = self.loop.call_later(REFUSED_S, self.transport.close)

  def data_received(self, data: bytes) -> None:
    if not self._is_refused:
      super().data_received(data)
      self._watch_head()

  def connection_lost(self, exc: Exception | None) -> None:
    self._forget_deadline()
    super().connection_lost(exc)

  def _watch_head(self) -> None:
    """Starts the time of a head that has not arrived, and ends that of one that has."""
    if self.conn.their_state is not h11.IDLE:
      self._forget_deadline()
    elif self._deadline is None:
      self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._end_waiting)

  def _end_waiting(self) -> None:
    self._deadline = None
    if self.conn.their_state is h11.IDLE:
      self.transport.close()

  def _forget_deadline(self) -> None:
    if self._deadline is not None:
      self._deadline.cancel()
      self._deadline = None


@functools.cache
def _refusal(most: int) -> bytes:
  """Returns the response to a client whose connection is one too many."""
  error = ApiError(
    503,
    f"the server has {most} connections, its limit; close idle ones, or try again later",
    code="too_many_connections",
  )
  body = json.dumps(error.content).encode()
  head = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    f"Retry-After: {RETRY_AFTER_S}\r\nContent-Length: {len(body)}\r\n\r\n"
  )
  return head.encode() + body
