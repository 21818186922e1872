"""Gemini's Batch API: many questions as one job, at half price, answered within a day or so.

A job is known by its name (`display_name`). Questions and results travel as files with one keyed line each, since
results come in any order, may be missing, and may be errors in a job that has succeeded.
"""

import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.teacher import Busy, Lost, Question, Refused, Reply
from spatial_vlm.synthesis.teachers import wire
from spatial_vlm.synthesis.teachers.gemini import GeminiTeacher

MAX_FILE_BYTES = 2 * 10**9
"""What the Files API takes."""
ENDED = ("SUCCEEDED", "PARTIALLY_SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED")

_HTTP_OF_GRPC = {
  **{1: 408, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409},
  **{11: 400, 12: 501, 13: 500, 14: 503, 15: 500, 16: 401},
}
"""Rows of results carry the codes of gRPC, google.rpc.Code."""

_log = logging.getLogger(__name__)

Outcome = Reply | Busy | Lost | Refused
"""What became of one question of a job."""


class BatchState(NamedTuple):
  """A job, as the server sees it."""

  job: str
  """Its id."""
  state: str
  """PENDING, RUNNING, … or one of ENDED."""
  results_file: str | None
  """Where there are any."""

  @property
  def ended(self) -> bool:
    return self.state in ENDED


class GeminiBatches:
  """Jobs of one teacher; raises Busy, Lost, Refused or UsageError as `Teacher.ask` does."""

  def __init__(self, teacher: GeminiTeacher, max_file_bytes: int = MAX_FILE_BYTES):
    self._teacher = teacher
    self._max_file_bytes = max_file_bytes

  async def find(self, name: str) -> str | None:
    """Id of the job of this name, the youngest if there are several; None where there is none."""
    async for job in self._jobs():
      if job.display_name == name:
        return job.name
    return None

  async def create(self, name: str, questions: Iterable[tuple[str, Question]]) -> str:
    """Id of the job of this name, which is made unless it exists: once is enough, however often it is asked for.

    Args:
      name: one that no other set of questions will ever have.
      questions: with their keys; read one by one, and not at all where the job exists.

    Raises:
      Lost: the answer did not arrive. The job may exist; `create` with the same name finds it.
      ValueError: a key stands twice.
    """
    if (job := await self.find(name)) is not None:
      return job
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "questions.jsonl")
      with path.open("w") as file:
        self._write(file, questions)
      async with self._teacher.translated():
        uploaded = await self._teacher.aio.files.upload(
          file=path, config={"display_name": name, "mime_type": "jsonl"}
        )
    async with self._teacher.translated():
      created = await self._teacher.aio.batches.create(
        model=self._teacher.settings.model, src=uploaded.name, config={"display_name": name}
      )
    return _known(created.name)

  async def poll(self, job: str) -> BatchState:
    """How far the job is; one that the server has forgotten is EXPIRED, without results."""
    try:
      async with self._teacher.translated():
        found = await self._teacher.aio.batches.get(name=job)
    except wire.NotFound:
      return BatchState(job, "EXPIRED", None)
    state = str(getattr(found.state, "value", found.state)).removeprefix("JOB_STATE_")
    return BatchState(job, state, found.dest.file_name if found.dest else None)

  async def cancel(self, job: str) -> None:
    """Asks the server to stop; what is written by then may still come as results."""
    async with self._teacher.translated():
      await self._teacher.aio.batches.cancel(name=job)

  async def results(
    self, state: BatchState, keys: Collection[str]
  ) -> AsyncIterator[tuple[str, Outcome]]:
    """Every key once, with what became of its question, in the order of the results.

    A row that failed is Busy or Refused. A key without a row, and every key of a job without results, is Lost: it
    may have been written and billed. Rows that nobody asked for are reported and left out.
    """
    left = set(keys)
    if not state.ended:
      raise ValueError(f"{state.job} is {state.state}; its results are there when it has ended")
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder, "results.jsonl")
      if await self._download(state, path):
        with path.open(encoding="utf-8", errors="replace") as file:
          for number, line in enumerate(file, start=1):
            with contextlib.suppress(_Unusable):
              key, outcome = self._row(state.job, number, line, left)
              left.remove(key)
              yield key, outcome
    for key in sorted(left):
      yield key, Lost(f"{state.job} is {state.state} and holds no result for this question")

  async def _download(self, state: BatchState, path: Path) -> bool:
    """Whether there are results: files are kept for two days or so."""
    if state.results_file is None:
      return False
    try:
      async with self._teacher.translated():
        await self._teacher.aio.files.download(file=state.results_file, destination=path)
    except wire.NotFound as error:
      _log.warning("the results of %s are gone: %s", state.job, error)
      return False
    return True

  def _write(self, file: IO[str], questions: Iterable[tuple[str, Question]]) -> None:
    size_bytes, keys = 0, set()
    for key, question in questions:
      if key in keys:
        raise ValueError(f"key {key!r} stands twice in one batch")
      keys.add(key)
      line = json.dumps({"key": key, "request": self._teacher.request(question)})
      size_bytes += file.write(line + "\n")  # ASCII
      if size_bytes > self._max_file_bytes:
        raise UsageError(
          f"{len(keys)} questions make a file of more than {self._max_file_bytes} bytes; put fewer into one batch"
        )

  async def _jobs(self) -> AsyncIterator[Any]:
    """All jobs, the youngest first. By pages, since the library's own iteration stops at an empty one."""
    async with self._teacher.translated():
      pager = await self._teacher.aio.batches.list(config={"page_size": 100})
    while True:
      for job in pager.page:
        yield job
      if not pager.config.get("page_token"):
        return
      async with self._teacher.translated():
        await pager.next_page()

  def _row(self, job: str, number: int, line: str, wanted: Collection[str]) -> tuple[str, Outcome]:
    """Raises _Unusable for a row that belongs to none of the keys wanted."""
    try:
      row = self._teacher.read_row(line)
    except Lost as error:
      _log.warning("%s, results, line %d: %s", job, number, error)
      raise _Unusable from error
    key = row.get("key")
    if not isinstance(key, str) or key not in wanted:
      _log.warning("%s, results, line %d: key %r is unknown, or came before", job, number, key)
      raise _Unusable
    try:
      if (response := row.get("response")) is not None:
        return key, self._teacher.read_reply(response)
      return key, _failed(row.get("error"))
    except Lost as error:
      return key, error


class _Unusable(Exception):
  """A row of results that belongs to no question."""


def _failed(error: Any) -> Busy | Lost | Refused:
  """What the `error` of a row means: nothing was answered and nothing billed."""
  if not isinstance(error, dict):
    return Lost(f"a row with neither a response nor an error, but {error!r}")
  code = error.get("code")
  code = code if isinstance(code, int) else 500
  found = wire.failure(_HTTP_OF_GRPC.get(code, code), str(error.get("message")), None)
  # The job itself was accepted, so that even an unknown model or a missing right is a matter of this row.
  return Refused(str(found)) if isinstance(found, UsageError) else found


def _known(name: str | None) -> str:
  if name is None:
    raise Lost("the server made a job without saying its name")
  return name
