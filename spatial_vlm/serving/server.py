"""The HTTP server: serves until SIGTERM or SIGINT, and lets running requests end."""

import asyncio
import math
import socket

import uvicorn
from starlette.types import ASGIApp

from spatial_vlm.serving.bounded_connection import BoundedConnection
from spatial_vlm.serving.service import ChatService

KEEP_ALIVE_S = 5
MAX_HEAD_BYTES = 16_384
GRACE_S = 2
"""Seconds in which interrupted requests send their errors."""


def serve(app: ASGIApp, bound: socket.socket, service: ChatService, drain_s: float) -> None:
  """Serves until a signal, then accepts no connection and waits up to `drain_s` for running requests.

  uvicorn raises the signal again in the end, so that the exit status says it. The server ends with exit status 1 when
  no engine can be made any more.
  """
  config = uvicorn.Config(
    app,
    http=BoundedConnection,
    limit_concurrency=service.limits.connections,
    ws="none",
    lifespan="on",
    log_level="warning",
    access_log=False,
    server_header=False,
    proxy_headers=False,
    h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    timeout_keep_alive=KEEP_ALIVE_S,
    timeout_graceful_shutdown=math.ceil(drain_s) + GRACE_S,
  )
  server = _Server(config, service, drain_s)
  server.run([bound])
  if server.failed:
    raise SystemExit("the server has ended because no engine can be made; see its log")


class _Server(uvicorn.Server):
  """Interrupts requests that outlast the drain, and ends when the engine's thread has ended."""

  def __init__(self, config: uvicorn.Config, service: ChatService, drain_s: float):
    super().__init__(config)
    self.failed = False
    self._service, self._drain_s = service, drain_s

  async def on_tick(self, counter: int) -> bool:
    if not self._service.engine.alive:
      self.failed = True
    return await super().on_tick(counter) or self.failed

  async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
    interrupting = asyncio.get_running_loop().call_later(
      self._drain_s, self._service.admission.interrupt
    )
    await super().shutdown(sockets)
    interrupting.cancel()
