"""A server on this machine with the APIs of Gemini and OpenAI; any function can answer.

It implements Gemini's generateContent, files (resumable upload, download) and batches (create, get, list, cancel,
delete), and OpenAI's chat completions. It checks the API key, counts what it serves, and simulates faults (`Faults`).

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
from spatial_vlm.synthesis.local.local_model import AnswerFunction, ApiError, LocalModel, Stats

_log = logging.getLogger(__name__)


class LocalServer:
  """Serves from threads of this process inside its `with` block."""

  def __init__(
    self,
    answer: AnswerFunction,
    *,
    model: str = "local-teacher",
    faults: Faults | None = None,
    seed: int = 0,
    key: str | None = None,
    batch_polls: int = 1,
    page_size: int = 50,
  ):
    """Binds a free port.

    Args:
      answer: called from several threads at once.
      model: name of the only model.
      faults: simulated faults; none by default.
      seed: seed of the faults.
      key: the API key that clients must send; random by default.
      batch_polls: polls after which a batch has ended.
      page_size: maximum batches of one page.
    """
    self.faults = faults or Faults()
    self.key = key or secrets.token_hex(16)
    self.model = LocalModel(answer, model, self.faults, seed)
    self.gemini = LocalGemini(self.model, batch_polls, page_size)
    self.last_body = b""
    """Body of the last question or batch."""
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
    """base_url for Gemini's client; OpenAI's is `url + "/v1"`."""
    return f"http://127.0.0.1:{self._http.server_address[1]}"

  def stats(self) -> Stats:
    """Returns the counts so far; GET /stats returns them as JSON."""
    return self.model.stats()

  def handle(self, request: Request) -> "_Response":
    """Returns the response to one request, with its fault if it meets one."""
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
      failure = ApiError(400, "INVALID_ARGUMENT", f"invalid request: {error!r}")
      return _Response(400, api.error(failure))
    return _Response(200, content, headers, fault)

  def _serve(self, request: Request) -> tuple[dict[str, Any] | bytes, Mapping[str, str]]:
    if request.path == local_openai.PATH or request.path.endswith("enerateContent"):
      self.last_body = request.body
    if request.path == local_openai.PATH:
      return local_openai.complete(self.model, json.loads(request.body)), {}
    return self.gemini.serve(request)

  def _check_key(self, request: Request) -> None:
    """Checks the API key; like real servers, repeats a wrong one in the message, where keys can leak."""
    openai = request.path == local_openai.PATH
    given = request.headers.get("authorization" if openai else "x-goog-api-key", "")
    given = given.removeprefix("Bearer ")
    if request.path.startswith(local_gemini.UPLOADS):
      return  # Like Google's, uploads need no key: only clients with a key get their address.
    if not given:
      raise ApiError(403, "PERMISSION_DENIED", "This method needs an API key.")
    if not secrets.compare_digest(given.encode(), self.key.encode()):
      code, status = (401, "UNAUTHENTICATED") if openai else (400, "INVALID_ARGUMENT")
      raise ApiError(code, status, f"API key not valid: {given}.", "API_KEY_INVALID")

  def _transient(self, request: Request) -> str | None:
    """Returns the transient fault of this try; uploads meet none, because google-genai retries them after seconds."""
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


_SLOW_PIECES = 20
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
    """Logs nothing; requests are counted instead."""

  def _respond(self) -> None:
    headers = {name.lower(): value for name, value in self.headers.items()}
    body = self.rfile.read(int(headers.get("content-length", 0)))
    request = Request(self.command, self.path, headers, body)
    is_question = request.path == local_openai.PATH or request.path.endswith(":generateContent")
    with self.server.local.model.count_in_flight() if is_question else contextlib.nullcontext():
      last = self._send(self.server.local.handle(request))
    # The client can send its next request only after the last byte, so a client is never counted twice at once.
    self.wfile.write(last)

  def _send(self, response: _Response) -> bytes:
    """Sends the response except its last byte, which it returns."""
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
      self._write_slowly(content[:-1])
    else:
      self.wfile.write(content[:-1])
    return content[-1:]

  def _write_slowly(self, content: bytes) -> None:
    """Writes small pieces at short intervals, so that a timeout for single reads does not expire."""
    step = max(1, -(-len(content) // _SLOW_PIECES))
    for start in range(0, len(content), step):
      time.sleep(self.server.local.faults.slow_s / _SLOW_PIECES)
      self.wfile.write(content[start : start + step])
