"""HTTP client of a vLLM server: its weight-update calls and its chat completions.

Read in vLLM at commits of August to October 2026 (0.32 and later): `vllm/entrypoints/serve/dev/rlhf/api_router.py` and
`docs/training/weight_transfer` for the weight updates, `vllm/entrypoints/openai/chat_completion/protocol.py` for the
answers. The weight-update calls exist only where the server runs with VLLM_SERVER_DEV_MODE=1.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError

RETRY_WAITS_S = (1.0, 4.0)
"""Pauses before the second and the third try of a completion that met a busy or absent server."""
BUSY = (429, 502, 503, 504)
"""Statuses after which a completion is asked for again."""
MAX_BODY_BYTES = 1 << 28
_MAX_MESSAGE_LENGTH = 300


class VllmClient:
  """Calls one vLLM server; threads may share it.

  Args:
    url: base address, e.g. http://127.0.0.1:8000, without a path.
    timeout_s: longest silence of the server in one call.
  """

  def __init__(self, url: str, timeout_s: float):
    check_url(url)
    self.url, self.timeout_s = url.rstrip("/"), timeout_s
    # The server is on this machine or in this cluster: no proxy is asked.
    self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

  def get(self, path: str) -> dict[str, Any]:
    """Returns the JSON object at a path; raises UsageError, in one sentence, for any failure."""
    return self._call(path, None)

  def post(
    self, path: str, body: Mapping[str, Any] = MappingProxyType({}), waits_s: Sequence[float] = ()
  ) -> dict[str, Any]:
    """Posts a JSON object and returns the answer's; raises UsageError, in one sentence, for any failure.

    `waits_s` are pauses before further tries; only a request that may be repeated has them.
    """
    return self._call(path, json.dumps(dict(body)).encode(), waits_s)

  def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the chat completion of a request with a seed, which gives the same answer at every try."""
    return self.post("/v1/chat/completions", body, RETRY_WAITS_S)

  def model(self) -> tuple[str, int]:
    """Returns the name of the served model and the most tokens of a prompt with its answer."""
    found = self.get("/v1/models")
    try:
      entry = found["data"][0]
      return str(entry["id"]), int(entry["max_model_len"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
      raise UsageError(
        f"{self.url}/v1/models lists no model with its max_model_len ({error!r}); engine.url must be a vLLM server"
      ) from error

  def update_weights(self, folder: epath.Path, version: str, transfer: str) -> None:
    """Replaces the served weights by the safetensors in `folder`, which the server must see at the same path.

    Generation is paused meanwhile, and the caches of the earlier weights are dropped. If a call fails, the server stays
    paused: its weights may be half replaced. The next update that succeeds resumes it.
    """
    self.post("/pause?mode=wait")
    TRANSFERS[transfer](self, os.fspath(folder), version)
    self.post("/resume")

  def checksums(self) -> dict[str, str]:
    """Returns name of each tensor, after the ranks that hold it -> SHA-256 of its bytes."""
    found = self.post("/weight_checker", {"action": "checksum"}).get("checksums")
    if not isinstance(found, dict):
      raise UsageError(f"{self.url}/weight_checker returned no checksums; a newer vLLM is needed")
    return found

  def _call(self, path: str, data: bytes | None, waits_s: Sequence[float] = ()) -> dict[str, Any]:
    for wait_s in (*waits_s, None):
      request = urllib.request.Request(self.url + path, data=data)
      request.add_header("Content-Type", "application/json")
      try:
        with self._opener.open(request, timeout=self.timeout_s) as response:
          return self._parsed(path, response.read(MAX_BODY_BYTES + 1))
      except urllib.error.HTTPError as error:
        if wait_s is None or error.code not in BUSY:
          raise UsageError(self._status_message(path, error)) from error
      except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
          raise UsageError(
            f"{self.url}{path} was silent for engine.timeout_s = {self.timeout_s:g} seconds; raise it, or look at the "
            "server's log"
          ) from error
        if wait_s is None:
          raise UsageError(
            f"{self.url}{path} cannot be reached ({reason}); start `vllm serve`, or correct engine.url"
          ) from error
      time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")

  def _parsed(self, path: str, body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
      raise UsageError(f"{self.url}{path} returned more than {MAX_BODY_BYTES >> 20} MiB")
    if not body.strip():
      return {}
    try:
      found = json.loads(body)
    except (ValueError, RecursionError) as error:
      raise UsageError(
        f"{self.url}{path} returned no JSON; engine.url must be a vLLM server"
      ) from error
    return found if isinstance(found, dict) else {}

  def _status_message(self, path: str, error: urllib.error.HTTPError) -> str:
    """Returns the sentence about an error status, with the server's own message cut to one line."""
    text = error.read(1 << 16).decode(errors="replace")
    try:
      found = json.loads(text)
      text = found.get("detail") or found.get("error") or text
      text = text.get("message", text) if isinstance(text, dict) else text
    except (ValueError, AttributeError, RecursionError):
      pass
    message = " ".join(str(text).split())[:_MAX_MESSAGE_LENGTH]
    sentence = f"{self.url}{path} answered {error.code} ({message!r})"
    if error.code == 404 and not path.startswith("/v1/"):
      return f"{sentence}; start the server with VLLM_SERVER_DEV_MODE=1"
    return sentence


def check_url(url: str) -> None:
  """Raises UsageError for an address that is none, or that holds a path, a query or a password."""
  parts = urllib.parse.urlsplit(url)
  try:
    valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
  except ValueError:
    valid = False
  if not valid or parts.path.strip("/") or parts.query or parts.username or parts.password:
    raise UsageError(
      f"engine.url is {url!r}; give the base address of a vLLM server, such as http://127.0.0.1:8000"
    )


def transfer_by_disk(client: VllmClient, folder: str, version: str) -> None:
  """Updates a server of `--weight-transfer-config '{"backend": "disk"}'` (vLLM pull request 52152)."""
  client.post("/init_weight_transfer_engine", {"init_info": {}})
  client.post("/start_weight_update")
  client.post("/update_weights", {"update_info": {"path": folder}})
  client.post("/finish_weight_update", {"weight_version": version})


def transfer_by_reload(client: VllmClient, folder: str, version: str) -> None:
  """Has the workers of any vLLM since 0.16 read the folder; it needs no weight transfer backend."""
  client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})


TRANSFERS: Mapping[str, Callable[[VllmClient, str, str], None]] = MappingProxyType(
  {"disk": transfer_by_disk, "reload": transfer_by_reload}
)
"""Name → function that replaces the weights of a paused server by those in a folder.

vLLM's other backends (NCCL, CUDA IPC) need a trainer that holds torch tensors on GPUs."""
