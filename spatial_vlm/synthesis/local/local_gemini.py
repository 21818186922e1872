"""Gemini's endpoints of the local server: generateContent, files and batches.

Keys may be camelCase or snake_case, and images may use either base64 alphabet, because clients mix them.
"""

import base64
import collections
import dataclasses
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from spatial_vlm.synthesis.hashing import hash_fraction
from spatial_vlm.synthesis.local.faults import JOB, ROW
from spatial_vlm.synthesis.local.local_model import ApiError, LocalModel, ReceivedQuestion

PATH = re.compile(
  r"/(?P<upload>upload/)?v\w+/(?P<kind>models|files|batches)(?:/(?P<name>[^/:]+))?(?::(?P<verb>\w+))?"
)
"""Matches, for example, /v1beta/models/gemini-2.5-pro:generateContent."""
UPLOADS = "/uploads/"
"""Path prefix of announced uploads."""

Headers = Mapping[str, str]


class Request(NamedTuple):
  """An HTTP request; header names are in lower case."""

  method: str
  url: str
  headers: Headers
  body: bytes

  @property
  def path(self) -> str:
    """The URL without its query."""
    return urllib.parse.urlsplit(self.url).path


@dataclasses.dataclass
class _Upload:
  display_name: str | None
  content: bytes = b""


@dataclasses.dataclass
class _Job:
  name: str
  display_name: str
  source: str
  state: str = "PENDING"
  polls: int = 0
  results: str | None = None


class LocalGemini:
  """Serves Gemini's API; keeps files and batches in memory."""

  def __init__(self, model: LocalModel, batch_polls: int, page_size: int):
    self.uploads: dict[str, _Upload] = {}
    """Path → upload."""
    self.files: dict[str, bytes] = {}
    """Name, such as `files/0` → content."""
    self._model = model
    self._batch_polls, self._page_size = batch_polls, page_size
    self._jobs: dict[str, _Job] = {}
    self._row_tries: collections.Counter[str] = collections.Counter()
    self._lock = threading.Lock()

  def serve(self, request: Request) -> tuple[dict[str, Any] | bytes, Headers]:
    """Returns content and headers of the response; raises ApiError, or any error that broken JSON causes."""
    if request.path.startswith(UPLOADS):
      return self._upload(request)
    found = PATH.fullmatch(request.path)
    name = found["name"] if found else ""
    match (request.method, *(found.group("upload", "kind", "verb") if found else ())):
      case ("POST", None, "models", "generateContent"):
        self._model.check_name(name)
        return self._generate(_snake(json.loads(request.body))), {}
      case ("POST", None, "models", "batchGenerateContent"):
        self._model.check_name(name)
        return self._create(_snake(json.loads(request.body))["batch"]), {}
      case ("POST", "upload/", "files", None):
        return self._announce(request)
      case ("GET", None, "files", "download"):
        return self._content(f"files/{name}"), {}
      case ("GET", None, "batches", None):
        return (self._get(self._job(name)) if name else self._list(request)), {}
      case ("POST", None, "batches", "cancel"):
        return self._cancel(self._job(name)), {}
      case ("DELETE", None, "batches", None):
        self._job(name).state = "DELETED"
        return {}, {}
    raise ApiError(404, "NOT_FOUND", f"{request.method} {request.path} is not found")

  def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
    """Returns a GenerateContentResponse."""
    thinking = body.get("generation_config", {}).get("thinking_config", {})
    if {"thinking_budget", "thinking_level"} <= thinking.keys():
      raise ValueError("thinking_budget and thinking_level cannot be used together")
    answer = self._model.answer(_parse(body))
    usage = {
      "promptTokenCount": answer.prompt,
      "cachedContentTokenCount": answer.cached,
      "candidatesTokenCount": answer.answer,
      "thoughtsTokenCount": answer.thoughts,
      "totalTokenCount": answer.prompt + answer.answer + answer.thoughts,
    }
    response: dict[str, Any] = {"usageMetadata": usage, "modelVersion": answer.version}
    if answer.finish == "PROHIBITED_CONTENT":
      return response | {"promptFeedback": {"blockReason": answer.finish}}
    candidate: dict[str, Any] = {"finishReason": answer.finish, "index": 0}
    if answer.text:
      parts = [{"text": answer.text, "thoughtSignature": "c2lnbmF0dXJl"}]
      candidate["content"] = {"role": "model", "parts": parts}
    return response | {"candidates": [candidate]}

  def _announce(self, request: Request) -> tuple[dict[str, Any], Headers]:
    about = _snake(json.loads(request.body or b"{}")).get("file", {})
    with self._lock:
      path = f"{UPLOADS}{len(self.uploads)}"
      self.uploads[path] = _Upload(about.get("display_name"))
    return {}, {"X-Goog-Upload-URL": f"http://{request.headers['host']}{path}"}

  def _upload(self, request: Request) -> tuple[dict[str, Any], Headers]:
    if (upload := self.uploads.get(request.path)) is None:
      raise ApiError(404, "NOT_FOUND", f"{request.path} is not found")
    if int(request.headers["x-goog-upload-offset"]) != len(upload.content):
      raise ValueError(f"the offset has to be {len(upload.content)}")
    upload.content += request.body
    if "finalize" not in request.headers["x-goog-upload-command"]:
      return {}, {"X-Goog-Upload-Status": "active"}
    name = f"files/{request.path.removeprefix(UPLOADS)}"
    self.files[name] = upload.content
    file = {"name": name, "displayName": upload.display_name}
    return {"file": file}, {"X-Goog-Upload-Status": "final"}

  def _content(self, name: str) -> bytes:
    if name not in self.files:
      raise ApiError(404, "NOT_FOUND", f"{name} is not found")
    return self.files[name]

  def _create(self, batch: dict[str, Any]) -> dict[str, Any]:
    source = batch["input_config"]["file_name"]
    self._content(source)
    with self._lock:
      job = _Job(f"batches/{len(self._jobs)}", batch["display_name"], source)
      self._jobs[job.name] = job
    self._model.count_job(job.display_name)
    return self._describe(job)

  def _get(self, job: _Job) -> dict[str, Any]:
    """Returns a batch; it runs at poll number `batch_polls`."""
    with self._lock:
      job.polls += 1
      if due := job.state == "PENDING" and job.polls >= self._batch_polls:
        job.state = "RUNNING"
    if due:
      self._run(job)
    return self._describe(job)

  def _list(self, request: Request) -> dict[str, Any]:
    """Lists the newest batches first. As with Google, a page may be empty and more may follow."""
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(request.url).query))
    size = min(int(query.get("pageSize", self._page_size)), self._page_size)
    start = int(query.get("pageToken", 0))
    with self._lock:
      jobs = list(self._jobs.values())[::-1]
    page = [self._describe(job) for job in jobs[start : start + size] if job.state != "DELETED"]
    more = {"nextPageToken": str(start + size)} if start + size < len(jobs) else {}
    return {"operations": page} | more

  def _cancel(self, job: _Job) -> dict[str, Any]:
    with self._lock:
      if job.state in ("PENDING", "RUNNING"):
        job.state = "CANCELLED"
    return {}

  def _job(self, name: str | None) -> _Job:
    job = self._jobs.get(f"batches/{name}")
    if job is None or job.state == "DELETED":
      raise ApiError(404, "NOT_FOUND", f"batches/{name} is not found")
    return job

  def _describe(self, job: _Job) -> dict[str, Any]:
    """Returns the batch as a long-running operation."""
    about: dict[str, Any] = {
      "model": f"models/{self._model.name}",
      "displayName": job.display_name,
      "state": f"BATCH_STATE_{job.state}",
    }
    if job.results is not None:
      about["output"] = {"responsesFile": job.results}
    return {"name": job.name, "metadata": about, "done": job.state not in ("PENDING", "RUNNING")}

  def _run(self, job: _Job) -> None:
    """Answers all rows of a batch."""
    model = self._model
    state = {"job_failed": "FAILED", "job_expired": "EXPIRED"}.get(
      model.faults.draw(JOB, model.seed, job.display_name) or "", "SUCCEEDED"
    )
    if state == "SUCCEEDED":
      lines = self.files[job.source].splitlines()
      rows = [json.dumps(row) for line in lines for row in self._row(json.loads(line))]
      if model.faults.rows_shuffled:
        rows.sort(key=lambda row: hash_fraction(model.seed, row))
      results = f"{job.source}-results"
      self.files[results] = "".join(f"{row}\n" for row in rows).encode()
      job.results = results
    with self._lock:
      if job.state == "RUNNING":  # not cancelled meanwhile
        job.state = state

  def _row(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the result of one line of a batch, or nothing if it meets the fault row_missing."""
    fault = self._row_fault(row["key"])
    if fault == "row_missing":
      return
    try:
      if fault == "row_failed":
        raise ApiError(13, "INTERNAL", "Internal error.")
      yield {"key": row["key"], "response": self._generate(_snake(row["request"]))}
    except ApiError as error:
      yield {"key": row["key"], "error": {"code": error.code, "message": str(error)}}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      yield {"key": row["key"], "error": {"code": 3, "message": f"not understood: {error!r}"}}

  def _row_fault(self, key: str) -> str | None:
    """Returns the fault of a row; it may succeed in a later batch."""
    with self._lock:
      tries = self._row_tries[key]
      self._row_tries[key] += 1
    faults = self._model.faults
    return None if tries >= faults.clears_after else faults.draw(ROW, self._model.seed, key)


def error(failure: ApiError) -> dict[str, Any]:
  """Returns the body of an error response."""
  about: dict[str, Any] = {"code": failure.code, "status": failure.status, "message": str(failure)}
  if failure.reason is not None:
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    about["details"] = [{"@type": kind, "reason": failure.reason, "domain": "googleapis.com"}]
  return {"error": about}


def _snake(value: Any) -> Any:
  """Returns the same JSON with keys in snake_case."""
  if isinstance(value, list):
    return [_snake(item) for item in value]
  if not isinstance(value, dict):
    return value
  return {re.sub(r"(?<!^)([A-Z])", r"_\1", k).lower(): _snake(v) for k, v in value.items()}


def _parse(body: dict[str, Any]) -> ReceivedQuestion:
  """Parses a generateContent request in snake_case."""
  [content] = body["contents"]
  images = [part["inline_data"]["data"] for part in content["parts"] if "inline_data" in part]
  if len(images) > 1:
    raise ValueError(f"a question has at most one image; got {len(images)}")
  system = body.get("system_instruction", {}).get("parts", [])
  return ReceivedQuestion(
    image=base64.urlsafe_b64decode("".join(images)),  # decodes the standard alphabet too
    system="".join(part["text"] for part in system),
    text="".join(part["text"] for part in content["parts"] if "text" in part),
    seed=body.get("generation_config", {}).get("seed", 0),
  )
