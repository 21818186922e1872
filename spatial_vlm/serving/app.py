"""The server's routes as an ASGI application.

POST /v1/chat/completions   OpenAI's chat completions, whole or streamed
GET  /v1/models             the model, with max_model_len; also /v1/models/NAME
GET  /health                status 200 while the engine runs
GET  /metrics               Prometheus
GET  /                      a page for people (see `page_routes`)
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_request import ChatRequest
from spatial_vlm.serving.chat_response import DONE, Completion, event
from spatial_vlm.serving.connection import bounded_send, while_connected
from spatial_vlm.serving.http_guard import HttpGuard
from spatial_vlm.serving.page_routes import page_routes
from spatial_vlm.serving.request_body import read_chat_request
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

  async def model(request: Request) -> Response:
    for listed in service.models():
      if listed["id"] == request.path_params["name"]:
        return JSONResponse(listed)
    raise ApiError(404, f"this server has {service.model!r} only", "model", "model_not_found")

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
      Route("/v1/models/{name:path}", model),
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
      chat = await read_chat_request(request, service)
      with service.admission.places(chat.samples - 1):
        # Neither this frame nor that of the answer keeps the request's images while the answer is written.
        answer = self._answered([chat], scope, receive, bounded_send(send))
        del chat
        if await while_connected(receive, answer):
          service.metrics.seconds.observe(time.monotonic() - begun)
        else:
          service.metrics.cancelled.inc()

  async def _answered(
    self, chats: list[ChatRequest], scope: Scope, receive: Receive, send: Send
  ) -> None:
    service, limits = self.service, self.service.limits
    stream, started = chats[0].stream, False
    try:
      async with service.admission.time_limit(limits.timeout_s):
        completion = await service.prepare(chats.pop())
        if not stream:
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
      if not stream:
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
