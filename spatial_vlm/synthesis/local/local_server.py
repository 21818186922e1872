"""A server on this machine that speaks as Gemini's and OpenAI's do, with any function to answer behind it.

Of Gemini it has generateContent, files (resumable upload, download) and batches (create, get, list, cancel, delete);
of OpenAI, chat completions. It checks the API key, counts what it serves and misbehaves as it is told (`Faults`).

>>> with LocalServer(lambda image, system, text, seed: "Yes.") as server:   # doctest: +SKIP
...   server.url
'http://127.0.0.1:40213'
"""

import collections
import contextlib
import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from spatial_vlm.synthesis.local import local_gemini, local_openai
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.local.local_gemini import LocalGemini, Request
from spatial_vlm.synthesis.local.local_model import Answer, ApiError, LocalModel, Stats

_log = logging.getLogger(__name__)


class LocalServer:
  """Serves from threads of this process while its `with` lasts."""

  def __init__(
    self,
    answer: Answer,
    *,
    model: str = "local-teacher",
    faults: Faults | None = None,
    seed: int = 0,
    key: str | None = None,
    batch_polls: int = 1,
    page_size: int = 50,
  ):
    """
    Args:
      answer: may be called from several threads at once.
      model: the only one there is.
      faults: what goes wrong; nothing by default.
      seed: of the faults.
      key: the API key to ask for; a random one by default.
      batch_polls: how often a batch is asked for before it has ended.
      page_size: batches listed at once, at most.
    """
    self.faults = faults or Faults()
    self.key = key or secrets.token_hex(16)
    self.model = LocalModel(answer, model, self.faults, seed)
    self.gemini = LocalGemini(self.model, batch_polls, page_size)
    self.last_body = b""
    """Of the last question or batch, as it came."""
    self._tries: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()
    self._http = _HttpServer(("127.0.0.1", 0), _Handler)
    self._http.local = self

  def __enter__(self) -> Self:
    threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
    return self

  def __exit__(self, *error: object) -> None:
    self._http.shutdown()
    self._http.server_close()

  @property
  def url(self) -> str:
    """For Gemini's base_url; OpenAI's is `url + "/v1"`."""
    return f"http://127.0.0.1:{self._http.server_address[1]}"

  def stats(self) -> Stats:
    """What was served so far; GET /stats gives the same as JSON."""
    return self.model.stats()

  def handle(self, request: Request) -> "_Response":
    """The response to one request, faults included."""
    if request.path == "/stats":
      return _Response(200, vars(self.stats()))
    api = local_openai if request.path == local_openai.PATH else local_gemini
    try:
      self._check_key(request)
      fault = self._transient(request)
      if fault in _STATUS:
        raise ApiError(*_STATUS[fault])
      content, headers = self._serve(request)
    except ApiError as failure:
      wait = {"Retry-After": f"{self.faults.retry_after_s:g}"} if failure.code == 429 else {}
      return _Response(failure.code, api.error(failure), wait)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      failure = ApiError(400, "INVALID_ARGUMENT", f"not understood: {error!r}")
      return _Response(400, api.error(failure))
    return _Response(200, content, headers, fault)

  def _serve(self, request: Request) -> tuple[dict[str, Any] | bytes, Mapping[str, str]]:
    if request.path == local_openai.PATH or request.path.endswith("enerateContent"):
      self.last_body = request.body
    if request.path == local_openai.PATH:
      return local_openai.complete(self.model, json.loads(request.body)), {}
    return self.gemini.serve(request)

  def _check_key(self, request: Request) -> None:
    """Servers repeat a wrong key in their message. So does this one: it is where a key leaks from."""
    openai = request.path == local_openai.PATH
    given = request.headers.get("authorization" if openai else "x-goog-api-key", "")
    given = given.removeprefix("Bearer ")
    if request.path.startswith(local_gemini.UPLOADS):
      return  # sent without a key, as to Google: the address itself is only told to those who had one
    if not given:
      raise ApiError(403, "PERMISSION_DENIED", "This method needs an API key.")
    if not secrets.compare_digest(given.encode(), self.key.encode()):
      code, status = (401, "UNAUTHENTICATED") if openai else (400, "INVALID_ARGUMENT")
      raise ApiError(code, status, f"API key not valid: {given}.", "API_KEY_INVALID")

  def _transient(self, request: Request) -> str | None:
    """The fault of this try of the request. Parts of files always arrive: google-genai waits seconds between tries."""
    if request.path.startswith(local_gemini.UPLOADS):
      return None
    identity = hashlib.sha256(
      f"{request.method} {request.url} ".encode() + request.body
    ).hexdigest()
    with self._lock:
      tries = self._tries[identity]
      self._tries[identity] += 1
    if tries >= self.faults.clears_after:
      return None
    return self.faults.draw(TRANSIENT, self.model.seed, identity, tries)


_STATUS = {
  "rate_limited": (429, "RESOURCE_EXHAUSTED", "Too many requests."),
  "internal_error": (500, "INTERNAL", "An internal error has occurred."),
  "unavailable": (503, "UNAVAILABLE", "The model is overloaded."),
}


_DROPS = 20
"""Pieces of a slow answer."""


class _Response(NamedTuple):
  status: int
  content: dict[str, Any] | bytes
  headers: Mapping[str, str] = {}
  fault: str | None = None


class _HttpServer(ThreadingHTTPServer):
  local: LocalServer
  request_queue_size = 256
  daemon_threads = True
  block_on_close = False

  def handle_error(self, request: Any, client_address: Any) -> None:
    _log.debug("a connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
  server: _HttpServer
  protocol_version = "HTTP/1.1"
  disable_nagle_algorithm = True

  def do_GET(self) -> None:
    self._respond()

  def do_POST(self) -> None:
    self._respond()

  def do_DELETE(self) -> None:
    self._respond()

  def log_message(self, format: str, *args: Any) -> None:
    """Nothing: what is asked for is counted."""

  def _respond(self) -> None:
    headers = {name.lower(): value for name, value in self.headers.items()}
    body = self.rfile.read(int(headers.get("content-length", 0)))
    request = Request(self.command, self.path, headers, body)
    asks = request.path == local_openai.PATH or request.path.endswith(":generateContent")
    with self.server.local.model.flight() if asks else contextlib.nullcontext():
      last = self._send(self.server.local.handle(request))
    # Only now can the client know that it is answered, and ask again: it is never counted twice at once.
    self.wfile.write(last)

  def _send(self, response: _Response) -> bytes:
    """Sends all but the last byte, which it returns."""
    content = response.content
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    half = content[: len(content) // 2]
    if response.fault == "truncated_body":
      content = half
    self.send_response(response.status)
    for name, value in response.headers.items():
      self.send_header(name, value)
    self.send_header("Content-Type", "application/json")
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if response.fault == "cut":
      self.close_connection = True
      content = half
    if response.fault == "slow":
      self._trickle(content[:-1])
    else:
      self.wfile.write(content[:-1])
    return content[-1:]

  def _trickle(self, content: bytes) -> None:
    """Slow as a whole, never silent for long: a time-out for single reads does not notice."""
    step = max(1, -(-len(content) // _DROPS))
    for start in range(0, len(content), step):
      time.sleep(self.server.local.faults.slow_s / _DROPS)
      self.wfile.write(content[start : start + step])
