"""Sends the questions that the journal does not answer yet through the Batch API: half the price, within a day.

Works in rounds: the next question about every unsettled record goes into a batch, and all batches of a round run at
once. Each batch is journaled before it is created and has a unique name, so that a restart finds it instead of creating
it twice.
"""

import asyncio
import collections
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, RefusedError
from spatial_vlm.synthesis.run.limiter import RequestLimits
from spatial_vlm.synthesis.run.requests import LONGEST_WAIT_S, OnSettled, SynthesisRun
from spatial_vlm.synthesis.teacher import Question
from spatial_vlm.synthesis.teachers.gemini_batch import BatchState, GeminiBatches

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BatchSettings:
  """Size of a batch and polling interval; raises UsageError for values that cannot work."""

  questions: int
  """Maximum questions of one batch."""
  poll_s: float
  """Seconds between two polls of a batch."""

  def __post_init__(self):
    if self.questions < 1 or self.poll_s < 0:
      raise UsageError(
        f"batch.questions is {self.questions} and batch.poll_s is {self.poll_s}; give at least 1 and at least 0"
      )


async def send_in_batches(
  run: SynthesisRun,
  batches: GeminiBatches,
  settings: BatchSettings,
  on_settled: OnSettled = lambda progress: None,
) -> None:
  """Settles every record, unless the run stops early.

  Raises UsageError if every other question would fail too, as with a wrong key.
  """
  unsettled = dict.fromkeys(run.questions.indices)
  tries: collections.Counter[str] = collections.Counter()
  await _finish_open_jobs(run, batches, settings)
  while pending := _pending_keys(run, unsettled, tries, on_settled):
    keys = pending.copy()
    while keys and (allowed := run.allowed_questions(batch=True)):
      size = int(min(settings.questions, len(keys), allowed))
      run.journal.add_job(_job_name(run, keys[:size]), keys[:size])
      del keys[:size]
    if not run.journal.open_jobs():
      return
    await _finish_open_jobs(run, batches, settings)
    tries.update(set(pending) - set(keys) - run.journal.answers.keys())


def _pending_keys(
  run: SynthesisRun,
  unsettled: dict[int, None],
  tries: collections.Counter[str],
  on_settled: OnSettled,
) -> list[str]:
  """Returns the keys of the next questions and removes settled records from `unsettled`.

  A question that was tried `max_tries` times is given up for this start.
  """
  pending, run.unanswered = [], 0
  for index in list(unsettled):
    progress = run.progress(index)
    if progress.next_attempt is None:
      del unsettled[index]
      on_settled(progress)
    elif tries[key := run.questions.key(index, progress.next_attempt)] < run.limits.max_tries:
      pending.append(key)
    else:
      run.unanswered += 1
  return pending


def _job_name(run: SynthesisRun, keys: Sequence[str]) -> str:
  """Returns a name from a hash of the keys and the number of earlier batches with the same keys."""
  digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
  return f"spatial-vlm-{digest}-{sum(tuple(keys) == old for old in run.journal.jobs.values())}"


async def _finish_open_jobs(
  run: SynthesisRun, batches: GeminiBatches, settings: BatchSettings
) -> None:
  jobs = run.journal.open_jobs().items()
  await asyncio.gather(*(_finish_job(run, batches, settings, name, keys) for name, keys in jobs))


async def _finish_job(
  run: SynthesisRun,
  batches: GeminiBatches,
  settings: BatchSettings,
  name: str,
  keys: Sequence[str],
) -> None:
  """Creates or finds one batch, waits for it and stores its results; it stays open if the server is unreachable."""

  def questions() -> Iterator[tuple[str, Question]]:
    attempts = run.questions.attempts_by_key
    return ((key, run.questions.question(*attempts[key])) for key in keys if key in attempts)

  async def store_results(state: BatchState) -> None:
    unanswered = [key for key in keys if key not in run.journal.answers]
    async for key, result in batches.results(state, unanswered):
      run.store(key, result, batch=True)

  try:
    job = await _with_retries(run.limits, name, lambda: batches.create(name, questions()))
    while not (state := await _with_retries(run.limits, name, lambda: batches.poll(job))).ended:
      await asyncio.sleep(settings.poll_s)
    await _with_retries(run.limits, name, lambda: store_results(state))
  except (BusyError, LostError, RefusedError) as error:
    run.stop(f"{name}: {error}; the next start fetches its results")
    return
  run.journal.end_job(name, state.state)


async def _with_retries(limits: RequestLimits, name: str, call: Callable[[], Awaitable[T]]) -> T:
  """Returns the result of `call`, which must be safe to repeat; raises the error of the last try."""
  for tries in range(1, limits.max_tries):
    try:
      return await call()
    except (BusyError, LostError) as error:
      wait_s = error.retry_after_s if isinstance(error, BusyError) else None
      if (wait_s or 0.0) > LONGEST_WAIT_S:
        raise
      await asyncio.sleep(max(wait_s or 0.0, limits.retry_delay_s(name, tries)))
  return await call()
