"""Gemini's Batch API: many questions as one job, at half the price, usually answered within a day.

Jobs are identified by their `display_name`. Questions and results are files with one keyed line each, because results
come in any order, may be missing, and may be errors even if the job succeeded.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, NotFoundError, SynthesisError
from spatial_vlm.synthesis.teacher import Answer, Question, Refusal
from spatial_vlm.synthesis.teachers import wire
from spatial_vlm.synthesis.teachers.gemini import GeminiTeacher

MAX_FILE_BYTES = 2 * 10**9
"""Limit of the Files API."""
ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")

_HTTP_OF_GRPC = {
  **{1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409},
  **{11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401},
}
"""gRPC code (google.rpc.Code), which rows of results carry → HTTP status."""

_log = logging.getLogger(__name__)

RowResult = Answer | BusyError | LostError
"""Result of one question of a job."""


class BatchState(NamedTuple):
  """State of a job on the server."""

  job: str
  """Id of the job."""
  state: str
  """PENDING, RUNNING, … or one of ENDED."""
  results_file: str | None
  """Name of the results file, if there is one."""

  @property
  def ended(self) -> bool:
    """True if the job will not change any more."""
    return self.state in ENDED


class GeminiBatches:
  """Jobs of one teacher; methods raise the same errors as `Teacher.ask`."""

  def __init__(self, teacher: GeminiTeacher, max_file_bytes: int = MAX_FILE_BYTES):
    self._teacher = teacher
    self._max_file_bytes = max_file_bytes

  async def find(self, name: str) -> str | None:
    """Returns the id of the newest job of this name; None if there is none."""
    async for job in self._jobs():
      if job.display_name == name:
        return job.name
    return None

  async def create(self, name: str, questions: Iterable[tuple[str, Question]]) -> str:
    """Creates the job of this name unless it exists, and returns its id.

    Args:
      name: unique to this set of questions.
      questions: (key, question) pairs, read one by one; not read if the job exists.

    Raises:
      LostError: no response arrived. The job may exist; `create` with the same name finds it.
      ValueError: a key occurs twice.
    """
    if (job := await self.find(name)) is not None:
      return job
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "questions.jsonl")
      with path.open("w") as file:
        self._write(file, questions)
      async with self._teacher.translate_errors():
        uploaded = await self._teacher.aio.files.upload(
          file=path, config={"display_name": name, "mime_type": "jsonl"}
        )
    async with self._teacher.translate_errors():
      created = await self._teacher.aio.batches.create(
        model=self._teacher.settings.model, src=uploaded.name, config={"display_name": name}
      )
    return _require_id(created.name)

  async def poll(self, job: str) -> BatchState:
    """Returns the state of a job; one that the server no longer has is EXPIRED without results."""
    try:
      async with self._teacher.translate_errors():
        found = await self._teacher.aio.batches.get(name=job)
    except NotFoundError:
      return BatchState(job, "EXPIRED", None)
    state = str(getattr(found.state, "value", found.state)).removeprefix("JOB_STATE_")
    return BatchState(job, state, found.dest.file_name if found.dest else None)

  async def cancel(self, job: str) -> None:
    """Cancels a job; finished rows may still appear in its results."""
    async with self._teacher.translate_errors():
      await self._teacher.aio.batches.cancel(name=job)

  async def results(
    self, state: BatchState, keys: Collection[str]
  ) -> AsyncIterator[tuple[str, RowResult]]:
    """Yields every key once with its result, in the order of the results file.

    A failed row is a BusyError or Refusal. A key without a row, and every key of a job without results, is a LostError,
    because it may have been answered and billed. Unknown rows are logged and skipped.
    """
    missing = set(keys)
    if not state.ended:
      raise ValueError(f"{state.job} is {state.state}; it has results only after it has ended")
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "results.jsonl")
      if await self._download(state, path):
        with path.open(encoding="utf-8", errors="replace") as file:
          for number, line in enumerate(file, start=1):
            with contextlib.suppress(_UnknownRowError):
              key, result = self._parse_row(state.job, number, line, missing)
              missing.remove(key)
              yield key, result
    for key in sorted(missing):
      yield key, LostError(f"{state.job} is {state.state} and has no result for this question")

  async def _download(self, state: BatchState, path: Path) -> bool:
    """Downloads the results; returns False if there are none (the server keeps files for about two days)."""
    if state.results_file is None:
      return False
    try:
      async with self._teacher.translate_errors():
        await self._teacher.aio.files.download(file=state.results_file, destination=path)
    except NotFoundError as error:
      _log.warning("the results of %s are gone: %s", state.job, error)
      return False
    return True

  def _write(self, file: IO[str], questions: Iterable[tuple[str, Question]]) -> None:
    """Writes the file of questions, one line each."""
    size_bytes, keys = 0, set()
    for key, question in questions:
      if key in keys:
        raise ValueError(f"key {key!r} occurs twice in one batch")
      keys.add(key)
      line = json.dumps({"key": key, "request": self._teacher.request(question)})
      size_bytes += file.write(line + "\n")  # characters are bytes, because JSON is ASCII
      if size_bytes > self._max_file_bytes:
        raise UsageError(
          f"{len(keys)} questions make a file of more than {self._max_file_bytes} bytes; put fewer into one batch"
        )

  async def _jobs(self) -> AsyncIterator[Any]:
    """Yields all jobs, newest first; reads page by page, because the library's iteration stops at an empty page."""
    async with self._teacher.translate_errors():
      pager = await self._teacher.aio.batches.list(config={"page_size": 100})
    while True:
      for job in pager.page:
        yield job
      if not pager.config.get("page_token"):
        return
      async with self._teacher.translate_errors():
        await pager.next_page()

  def _parse_row(
    self, job: str, number: int, line: str, wanted: Collection[str]
  ) -> tuple[str, RowResult]:
    """Returns key and result of a row; raises _UnknownRowError if it belongs to no wanted key."""
    try:
      row = self._teacher.read_row(line)
    except LostError as error:
      _log.warning("%s, results, line %d: %s", job, number, error)
      raise _UnknownRowError from error
    key = row.get("key")
    if not isinstance(key, str) or key not in wanted:
      _log.warning("%s, results, line %d: key %r is unknown or a repetition", job, number, key)
      raise _UnknownRowError
    try:
      if (response := row.get("response")) is not None:
        return key, self._teacher.read_reply(response)
      return key, _row_error(row.get("error"))
    except LostError as error:
      return key, error


class _UnknownRowError(SynthesisError):
  """A row of results belongs to no question."""


def _row_error(error: Any) -> Refusal | BusyError | LostError:
  """Returns the result for the `error` of a row, which was neither answered nor billed."""
  if not isinstance(error, dict):
    return LostError(f"the row has neither response nor error: {error!r}")
  code = error.get("code")
  code = code if isinstance(code, int) else 500
  found = wire.status_error(_HTTP_OF_GRPC.get(code, code), str(error.get("message")), None)
  # The server accepted the job, so even an unknown model or a missing permission concerns this row alone.
  return found if isinstance(found, BusyError | LostError) else Refusal(str(found))


def _require_id(name: str | None) -> str:
  """Returns the id; raises LostError if there is none."""
  if name is None:
    raise LostError("the server created a job but did not return its id")
  return name
