"""The server's routes as an ASGI application.

POST /v1/chat/completions   OpenAI's chat completions, whole or streamed
GET  /v1/models             the model, with max_model_len
GET  /health                status 200 while the engine runs
GET  /metrics               Prometheus
GET  /                      a page for people (see `page_routes`)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_request import parse_chat_request
from spatial_vlm.serving.chat_response import DONE, Completion, event
from spatial_vlm.serving.http_guard import HttpGuard
from spatial_vlm.serving.page_routes import page_routes
from spatial_vlm.serving.sample_scenes import Sample
from spatial_vlm.serving.server_metrics import CONTENT_TYPE, ServerMetrics
from spatial_vlm.serving.service import ChatService

log = logging.getLogger(__name__)

CHAT = "/v1/chat/completions"


def make_app(
  service: ChatService, guard: HttpGuard | None = None, samples: Sequence[Sample] = ()
) -> ASGIApp:
  """Returns the application; its lifespan starts and stops the service. The page offers the samples."""

  @contextlib.asynccontextmanager
  async def lifespan(app: Starlette) -> AsyncIterator[None]:
    service.start()
    yield
    await asyncio.to_thread(service.stop)

  async def models(request: Request) -> Response:
    return JSONResponse({"object": "list", "data": service.models()})

  async def health(request: Request) -> Response:
    if not service.engine.alive:
      raise ApiError(503, "the engine does not run; restart the server")
    return JSONResponse({"status": "ok"})

  async def metrics(request: Request) -> Response:
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

  app = Starlette(
    routes=[
      Route(CHAT, _ChatEndpoint(service), methods=["POST"]),
      Route("/v1/models", models),
      Route("/health", health),
      Route("/metrics", metrics),
      *page_routes(samples),
    ],
    exception_handlers={ApiError: _api_error, HTTPException: _http_error, Exception: _any_error},
    lifespan=lifespan,
  )
  return _Outermost(app, guard or HttpGuard(), service.metrics)


class _Outermost:
  """Checks each request and counts each response."""

  def __init__(self, app: Starlette, guard: HttpGuard, metrics: ServerMetrics):
    self.app, self.guard, self.metrics = app, guard, metrics

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
      await send({"type": "websocket.close", "code": 1000})
      return
    if scope["type"] != "http":
      await self.app(scope, receive, send)
      return
    request = Request(scope, receive)

    async def counted(message: Message) -> None:
      if message["type"] == "http.response.start":
        route = getattr(scope.get("route"), "path", "other")  # paths of clients are endless
        self.metrics.responses.labels(route, str(message["status"])).inc()
      await send(message)

    try:
      self.guard.check(scope["path"], request.headers)
    except ApiError as error:
      await _api_error(request, error)(scope, receive, counted)
      return
    await self.app(scope, receive, counted)


class _ChatEndpoint:
  """POST /v1/chat/completions, as an ASGI application: it watches whether the client is still there."""

  def __init__(self, service: ChatService):
    self.service = service

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    begun = time.monotonic()
    service, request = self.service, Request(scope, receive)
    with service.admitted():
      body = await _read_body(request, service)
      chat = parse_chat_request(body, service.defaults)
      answer = self._answered(chat, scope, receive, send)
      if await _while_connected(receive, answer):
        service.metrics.seconds.observe(time.monotonic() - begun)
      else:
        service.metrics.cancelled.inc()

  async def _answered(self, chat, scope: Scope, receive: Receive, send: Send) -> None:
    service, limits = self.service, self.service.limits
    started = False
    try:
      async with asyncio.timeout(limits.timeout_s):
        completion = await service.prepare(chat)
        if not chat.stream:
          async with contextlib.aclosing(service.pieces(completion)) as pieces:
            async for _ in pieces:
              pass
        else:
          started = True
          await self._stream(completion, send)
    except TimeoutError:
      service.metrics.cancelled.inc()
      error = ApiError(
        504, f"no answer within {limits.timeout_s:g} s; ask for fewer tokens", code="timeout"
      )
      if not started:
        raise error from None
      await _send_last(send, event(error.content))
    except ApiError as error:
      if not started:
        raise
      await _send_last(send, event(error.content))
    else:
      if not chat.stream:
        await JSONResponse(completion.whole())(scope, receive, send)

  async def _stream(self, completion: Completion, send: Send) -> None:
    headers = [
      (b"content-type", b"text/event-stream; charset=utf-8"),
      (b"cache-control", b"no-cache"),
      (b"x-accel-buffering", b"no"),  # nginx passes events on at once
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in completion.opening():
      await _send_part(send, event(chunk))
    async with contextlib.aclosing(self.service.pieces(completion)) as pieces:
      async for piece in pieces:
        await _send_part(send, event(completion.chunk(piece)))
    for chunk in completion.closing():
      await _send_part(send, event(chunk))
    await _send_last(send, DONE)


async def _send_part(send: Send, body: bytes) -> None:
  await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_last(send: Send, body: bytes) -> None:
  await send({"type": "http.response.body", "body": body, "more_body": False})


async def _while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
  """Does the work; cancels it and returns False when the client goes away."""

  async def gone() -> None:
    while (await receive())["type"] != "http.disconnect":
      pass

  working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
  try:
    await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
      return False
    await working  # raises its error
    return True
  finally:
    for task in (working, watching):
      task.cancel()
    await asyncio.gather(working, watching, return_exceptions=True)


async def _read_body(request: Request, service: ChatService) -> bytes:
  limits = service.limits
  kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
  if kind != "application/json":
    # A web page can send other types to this server without asking it first.
    raise ApiError(415, "the body must be sent with Content-Type: application/json")
  too_large = ApiError(413, f"the body has more than {limits.body_bytes} bytes, which is the limit")
  length = request.headers.get("content-length", "")
  if length.isdecimal() and int(length[:20]) > limits.body_bytes:
    raise too_large
  body = bytearray()
  try:
    async with asyncio.timeout(limits.body_timeout_s):
      async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
          raise too_large
  except TimeoutError:
    raise ApiError(408, f"the body did not arrive within {limits.body_timeout_s:g} s") from None
  except ClientDisconnect:
    raise ApiError(400, "the body is incomplete") from None
  return bytes(body)


def _api_error(request: Request, error: Exception) -> Response:
  assert isinstance(error, ApiError)
  return JSONResponse(error.content, error.status, error.headers)


def _http_error(request: Request, error: Exception) -> Response:
  assert isinstance(error, HTTPException)
  message = f"{request.method} {request.url.path} gives status {error.status_code}: {error.detail}"
  return _api_error(request, ApiError(error.status_code, message, headers=error.headers))


def _any_error(request: Request, error: Exception) -> Response:
  log.error("an unexpected error", exc_info=error)
  return _api_error(request, ApiError(500, "an internal error; the server's log has more"))
