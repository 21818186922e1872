"""HTTP client of a vLLM server: its weight-update calls and its chat completions.

Read in vLLM at commits of August to October 2026: `vllm/entrypoints/serve/dev/rlhf/api_router.py` and
`docs/training/weight_transfer` for the weight updates, `vllm/entrypoints/openai/chat_completion/protocol.py` for the
answers. The weight-update calls exist only where the server runs with VLLM_SERVER_DEV_MODE=1. Two of them were in open
pull requests, and in no release, in November 2026: `/weight_checker` (51350) and the backend `disk` (52152).
"""

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm.config import UsageError

RETRY_WAITS_S = (1.0, 4.0)
"""Pauses before the second and the third try of a completion that met a busy or absent server."""
BUSY = (429, 502, 503, 504)
"""Statuses after which a completion is asked for again."""
MAX_BODY_BYTES = 1 << 28
API_KEY = "VLLM_API_KEY"
"""Environment variable of the key that a server asks for; `vllm serve` reads its own key from it too."""
CHECKER = "/weight_checker"
_MAX_MESSAGE_LENGTH = 300


class RefusedCall(UsageError):
  """An error status of the server."""

  def __init__(self, message: str, status: int):
    super().__init__(message)
    self.status = status


class VllmClient:
  """Calls one vLLM server, with the key in the environment variable VLLM_API_KEY; threads may share it.

  Args:
    url: base address, e.g. http://127.0.0.1:8000, without a path.
    timeout_s: longest silence of the server in one call.
  """

  def __init__(self, url: str, timeout_s: float):
    check_url(url)
    self.url, self.timeout_s = url.rstrip("/"), timeout_s
    self._key = os.environ.get(API_KEY, "")
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

  def check_updates(self, transfer: str, compares_checksums: bool) -> None:
    """Raises UsageError where the server lacks what an update of its weights needs; no weights are sent.

    Args:
      transfer: name of TRANSFERS.
      compares_checksums: whether an update ends with `checksums`, which needs whole tensors on one rank.
    """
    checker = (CHECKER,) if compares_checksums else ()
    needed = ("/pause", "/resume", *TRANSFERS[transfer].paths, *checker)
    missing = [path for path in needed if not self._has(path)]
    if missing == [CHECKER]:
      raise UsageError(
        f"{self.url} has no {CHECKER}, which vLLM's pull request 51350 adds and no release had in November 2026; serve "
        "with a vLLM that has it, or set engine.checksums=False: updates are then not verified"
      )
    if missing:
      raise UsageError(
        f"{self.url} has no {', '.join(missing)}; start the server with VLLM_SERVER_DEV_MODE=1, and with a vLLM that "
        "has these calls"
      )
    TRANSFERS[transfer].prepare(self)
    if compares_checksums and (ranks := self._ranks()) != 1:
      raise UsageError(
        f"{self.url} splits the model over {ranks} ranks, and checksums of whole tensors cannot be compared with "
        "theirs; start vLLM with --tensor-parallel-size 1 and, for several GPUs, --data-parallel-size, or set "
        "engine.checksums=False"
      )

  def _has(self, path: str) -> bool:
    """Returns whether the server knows a path: a GET of a path that takes POST answers 405, and does nothing."""
    try:
      self.get(path)
    except RefusedCall as error:
      if error.status not in (404, 405):
        raise
      return error.status == 405
    return True

  def _ranks(self) -> int:
    """Returns the number of ranks that hold one copy of the model together."""
    ranks = self.get("/get_world_size?include_dp=false").get("world_size")
    if not isinstance(ranks, int):
      raise UsageError(f"{self.url}/get_world_size returned no world_size; a newer vLLM is needed")
    return ranks

  def update_weights(self, folder: epath.Path, version: str, transfer: str) -> None:
    """Replaces the served weights by the safetensors in `folder`, which the server must see at the same path.

    Generation is paused meanwhile, and the caches of the earlier weights are dropped. If a call fails, the server stays
    paused: its weights may be half replaced. The next update that succeeds resumes it.
    """
    self.post("/pause?mode=wait")
    TRANSFERS[transfer].send(self, os.fspath(folder), version)
    self.post("/resume")

  def checksums(self) -> dict[str, str]:
    """Returns name of each tensor, after the ranks that hold it -> SHA-256 of its bytes."""
    found = self.post(CHECKER, {"action": "checksum"}).get("checksums")
    if not isinstance(found, dict):
      raise UsageError(f"{self.url}{CHECKER} returned no checksums; a newer vLLM is needed")
    return found

  def _call(self, path: str, data: bytes | None, waits_s: Sequence[float] = ()) -> dict[str, Any]:
    for wait_s in (*waits_s, None):
      request = urllib.request.Request(self.url + path, data=data)
      request.add_header("Content-Type", "application/json")
      if self._key:
        # A redirection to another server does not get the key.
        request.add_unredirected_header("Authorization", f"Bearer {self._key}")
      try:
        with self._opener.open(request, timeout=self.timeout_s) as response:
          return self._parsed(path, response.read(MAX_BODY_BYTES + 1))
      except urllib.error.HTTPError as error:
        if wait_s is None or error.code not in BUSY:
          raise RefusedCall(self._status_message(path, error), error.code) from error
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
    if error.code == 401:
      return f"{sentence}; set the environment variable {API_KEY} to the server's --api-key"
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


class Transfer(NamedTuple):
  """A way in which a paused server gets new weights."""

  paths: tuple[str, ...]
  """What the server must have for it."""
  prepare: Callable[[VllmClient], None]
  """Raises UsageError where the server is not set up for it."""
  send: Callable[[VllmClient, str, str], None]
  """(client, folder, version) → nothing; replaces the weights by those in the folder."""


def prepare_disk(client: VllmClient) -> None:
  """Initializes the backend `disk`; raises UsageError where the server has another one or none."""
  try:
    client.post("/init_weight_transfer_engine", {"init_info": {}})
  except RefusedCall as error:
    raise UsageError(
      f'{error}; engine.transfer=disk needs a server with --weight-transfer-config \'{{"backend": "disk"}}\', which '
      "vLLM's pull request 52152 adds and no release had in November 2026; or choose engine.transfer=reload"
    ) from error


def send_by_disk(client: VllmClient, folder: str, version: str) -> None:
  """Updates a server of the backend `disk` in one session.

  A client that was killed in an update leaves its session open, and the server refuses another one. Finishing ends it:
  without a checkpoint with an error (`disk_engine.finish_weight_update`), after one without.
  """
  try:
    client.post("/start_weight_update")
  except RefusedCall:
    with contextlib.suppress(RefusedCall):
      client.post("/finish_weight_update")
    client.post("/start_weight_update")
  client.post("/update_weights", {"update_info": {"path": folder}})
  client.post("/finish_weight_update", {"weight_version": version})


def send_by_reload(client: VllmClient, folder: str, version: str) -> None:
  """Has the workers read the folder; this needs no weight transfer backend."""
  client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})


TRANSFERS: Mapping[str, Transfer] = MappingProxyType(
  {
    "disk": Transfer(
      (
        *("/init_weight_transfer_engine", "/start_weight_update", "/update_weights"),
        "/finish_weight_update",
      ),
      prepare_disk,
      send_by_disk,
    ),
    "reload": Transfer(("/collective_rpc",), lambda client: None, send_by_reload),
  }
)
"""Name → way of transfer. vLLM's other backends (NCCL, CUDA IPC) need a trainer that holds torch tensors on GPUs."""
