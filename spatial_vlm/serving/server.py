"""The HTTP server: serves until SIGTERM or SIGINT, and lets running requests end."""

import math
import socket

import uvicorn
from starlette.types import ASGIApp

KEEP_ALIVE_S = 5
MAX_HEAD_BYTES = 16_384


def serve(app: ASGIApp, bound: socket.socket, drain_s: float) -> None:
  """Serves until a signal; after it accepts no connection and waits up to `drain_s` for running requests.

  uvicorn raises the signal again in the end, so that the exit status says it.
  """
  config = uvicorn.Config(
    app,
    http="h11",
    ws="none",
    lifespan="on",
    log_level="warning",
    access_log=False,
    server_header=False,
    proxy_headers=False,
    h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    timeout_keep_alive=KEEP_ALIVE_S,
    timeout_graceful_shutdown=math.ceil(drain_s),
  )
  uvicorn.Server(config).run([bound])
