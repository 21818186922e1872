"""Bodies of chat requests: read within limits, then parsed."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_request import ChatRequest, parse_chat_request
from spatial_vlm.serving.service import ChatService

LARGE_BODY_BYTES = 65_536
"""Larger bodies are parsed in a thread, so that other requests go on."""


async def read_chat_request(request: Request, service: ChatService) -> ChatRequest:
  """Returns the request in the body; ApiError if it is malformed, too large or too slow."""
  return await _parsed(await _read_body(request, service), service)


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
    async with service.admission.time_limit(limits.body_timeout_s):
      async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
          raise too_large
  except TimeoutError:
    raise ApiError(408, f"the body did not arrive within {limits.body_timeout_s:g} s") from None
  except ClientDisconnect:
    raise ApiError(400, "the body is incomplete") from None
  return bytes(body)


async def _parsed(body: bytes, service: ChatService) -> ChatRequest:
  if len(body) > LARGE_BODY_BYTES:
    return await asyncio.to_thread(parse_chat_request, body, service.defaults)
  return parse_chat_request(body, service.defaults)
