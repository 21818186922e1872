"""Sends the questions that the journal does not answer yet, many at once, each with retries until it is settled."""

import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, RefusedError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.limiter import RateLimiter, RequestLimits
from spatial_vlm.synthesis.run.progress import RecordProgress, Verifier, record_progress
from spatial_vlm.synthesis.run.questions import Questions
from spatial_vlm.synthesis.teacher import Answer, Question, Refusal, Reply, Teacher

Result = Answer | BusyError | LostError
"""Result of sending a question once."""

Item = TypeVar("Item")
OnSettled = Callable[[RecordProgress], None]
"""Called for each settled record, including those that an earlier start settled."""


_MAX_FAILURES_IN_A_ROW = 20
"""Consecutive failures, and at least as many as can be in flight, after which the run stops."""
LONGEST_WAIT_S = 900.0
"""A server that asks for a longer wait stops the run."""
_BUDGET_RECHECK_S = 0.02


class RequestRun:
  """What all runs share: the journal, the budget, the limits, and why a run has to stop early."""

  journal: Journal
  ledger: Ledger
  limits: RequestLimits
  stop_reason: str = ""
  """If not empty, no further question is sent; those in flight still finish."""
  unanswered: int = 0
  """Questions given up in this start."""
  failures_in_a_row: int = 0
  """Consecutive questions without a reply, or with one that cannot be read."""
  refused_in_a_row: list[str]
  """Keys of the refusals among them."""

  def stop(self, reason: str) -> None:
    """Stops the run; the first reason is kept."""
    self.stop_reason = self.stop_reason or reason

  def allowed_questions(self, batch: bool) -> float:
    """Returns how many more questions may be sent; stops the run if the budget allows none."""
    allowed = 0 if self.stop_reason else self.ledger.affordable_questions(batch)
    if not allowed:
      self.stop(
        f"budget_usd={self.ledger.budget_usd} allows no further question: {self.ledger.spent_usd:.2f} USD are spent, "
        f"up to {self.ledger.reserved_usd:.2f} are in flight, up to {self.ledger.unconfirmed_usd:.2f} may have been "
        "billed without an answer; raise budget_usd to continue"
      )
    return allowed

  def store(self, key: str, result: Result, batch: bool) -> None:
    """Appends a result to the journal."""
    match result:
      case Reply():
        self.journal.add_reply(key, result, batch)
      case Refusal():
        self.journal.add_refusal(key, result.reason)
      case LostError():
        self.journal.add_lost(key, str(result))
      case BusyError():
        self.journal.add_busy(key, str(result))

  def count(self, key: str, result: Result, problem: str = "") -> None:
    """Counts the final result of a question; stops the run after many failures in a row.

    The refusals of a row that stops the run are not final: the fault is not theirs, and a mended server may answer.

    Args:
      problem: why the text of a reply cannot be read; "" if it can.
    """
    self.unanswered += isinstance(result, BusyError | LostError)
    if isinstance(result, Reply) and not problem:
      self.failures_in_a_row = 0
      self.refused_in_a_row.clear()
      return
    self.failures_in_a_row += 1
    if isinstance(result, Refusal):
      self.refused_in_a_row.append(key)
    if self.failures_in_a_row < max(self.limits.most_in_flight, _MAX_FAILURES_IN_A_ROW):
      return
    self.stop(
      f"{self.failures_in_a_row} questions in a row failed, the last one with: {problem or result}"
    )
    self.reopen(self.refused_in_a_row)
    self.refused_in_a_row.clear()

  def reopen(self, keys: Sequence[str]) -> None:
    """Takes back refusals: the next start asks these questions again."""
    if keys:
      self.journal.reopen(keys)


@dataclasses.dataclass
class SynthesisRun(RequestRun):
  """State of one start about records: its questions and their verification."""

  questions: Questions
  journal: Journal
  verifier: Verifier
  ledger: Ledger
  limits: RequestLimits
  mixed_versions: bool
  """Whether a set may contain answers of several model versions."""
  settled: dict[int, RecordProgress] = dataclasses.field(default_factory=dict)
  """Progress of the settled records by index."""
  refused_in_a_row: list[str] = dataclasses.field(default_factory=list)

  def progress(self, index: int) -> RecordProgress:
    """Returns the progress of the record `index`."""
    if index in self.settled:
      return self.settled[index]
    progress = record_progress(self.questions, index, self.journal, self.verifier)
    if progress.next_attempt is None:
      self.settled[index] = progress
    return progress

  def problem(self, index: int, result: Result) -> str:
    """Returns why the newest reply about a record cannot be read; "" if it can, or is no reply."""
    if not isinstance(result, Reply):
      return ""
    rejections = self.progress(index).answers[-1].rejections
    return next((r.detail for r in rejections if r.check in ("format", "finish")), "")

  def store(self, key: str, result: Result, batch: bool) -> None:
    """Appends a result to the journal; stops the run if another model version answered."""
    super().store(key, result, batch)
    if isinstance(result, Reply):
      self._check_version(result.model_version)

  def reopen(self, keys: Sequence[str]) -> None:
    """See RequestRun; records that these refusals settled are open again."""
    super().reopen(keys)
    self.settled.clear()

  def _check_version(self, version: str) -> None:
    if self.mixed_versions or self.verifier.model_version:
      return
    if others := self.journal.versions - {version}:
      self.stop(
        f"{version} answered after {', '.join(sorted(others))}, and a set has one model version; set model_version to "
        "the one to keep, or allow_mixed_versions"
      )


async def send_questions(
  run: SynthesisRun, teacher: Teacher, on_settled: OnSettled = lambda progress: None
) -> None:
  """Settles every record, unless the run stops early.

  Raises UsageError if every other question would fail too, as with a wrong key.
  """
  limiter = RateLimiter(run.limits)

  async def settle(index: int) -> None:
    await _settle(run, index, teacher, limiter, on_settled)

  await work_on(run, run.questions.indices, settle)


async def work_on(
  run: RequestRun, items: Iterable[Item], settle: Callable[[Item], Awaitable[None]]
) -> None:
  """Settles the items with as many workers as requests can be in flight, until the run stops."""
  waiting = iter(items)

  async def work() -> None:
    for item in waiting:
      if run.stop_reason:
        return
      await settle(item)

  try:
    async with asyncio.TaskGroup() as workers:
      for _ in range(run.limits.most_in_flight):
        workers.create_task(work())
  except* Exception as group:
    raise group.exceptions[0] from None


async def _settle(
  run: SynthesisRun, index: int, teacher: Teacher, limiter: RateLimiter, on_settled: OnSettled
) -> None:
  """Sends the attempts at one record until one is accepted or none is left."""
  while (progress := run.progress(index)).next_attempt is not None:
    key = run.questions.key(index, progress.next_attempt)
    question = run.questions.question(index, progress.next_attempt)
    result = await send_with_retries(run, key, question, teacher, limiter)
    if result is not None:
      run.count(key, result, run.problem(index, result))
    if not isinstance(result, Answer):
      return
  on_settled(progress)


async def send_with_retries(
  run: RequestRun, key: str, question: Question, teacher: Teacher, limiter: RateLimiter
) -> Result | None:
  """Returns the result of the last try; None if the run stopped before the question was sent."""
  result = None
  for tries in range(1, run.limits.max_tries + 1):
    async with limiter.slot():
      while not run.stop_reason and run.ledger.must_wait:
        await asyncio.sleep(_BUDGET_RECHECK_S)
      if not run.allowed_questions(batch=False):
        return None
      started_s = time.monotonic()
      result = await _send(run, key, question, teacher)
      if isinstance(result, Reply):
        limiter.observe(time.monotonic() - started_s)
      if isinstance(result, BusyError):
        if (wait_s := result.retry_after_s or 0.0) > LONGEST_WAIT_S:
          run.stop(
            f"the server asks to wait {wait_s / 3600:.1f} hours ({result}); start again then"
          )
          return result
        limiter.pause(wait_s)
    if isinstance(result, Answer):
      break
    if tries < run.limits.max_tries:
      await asyncio.sleep(run.limits.retry_delay_s(key, tries))
  return result


async def _send(run: RequestRun, key: str, question: Question, teacher: Teacher) -> Result:
  """Sends a question once. If cancelled, the journal lists it as in flight."""
  run.journal.add_sent(key)
  try:
    with run.ledger.reserve():
      result: Result = await teacher.ask(question)
  except (BusyError, LostError) as error:
    result = error
  except RefusedError as error:
    result = Refusal(str(error))
  except UsageError as error:
    run.journal.add_busy(key, str(error))
    raise
  run.store(key, result, batch=False)
  return result
