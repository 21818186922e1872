"""Asks a teacher through the Batch API what the journal does not answer yet, at half price and within a day.

In rounds: the next question on every record that is not settled, cut into batches, all of which run at once. A batch
is written down before it is created and is known by its name, so that no stop makes it twice: the next start finds it.
"""

import asyncio
import collections
import dataclasses
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.ask import Run
from spatial_vlm.synthesis.run.history import History
from spatial_vlm.synthesis.run.limiter import Pace
from spatial_vlm.synthesis.teacher import Busy, Lost, Question, Refused
from spatial_vlm.synthesis.teachers.gemini_batch import BatchState, GeminiBatches

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """How questions are put into batches."""

  questions: int
  """Of one batch, at most."""
  poll_s: float
  """Between two looks at a batch."""

  def __post_init__(self):
    if self.questions < 1 or self.poll_s < 0:
      raise UsageError(
        f"batch.questions is {self.questions} and batch.poll_s is {self.poll_s}; give at least 1 and a time from 0 on"
      )


async def ask_in_batches(
  run: Run,
  batches: GeminiBatches,
  plan: BatchPlan,
  on_settled: Callable[[History], None] = lambda history: None,
) -> None:
  """Settles every record, as far as the run may; `on_settled` hears of each as it happens, and of those that were.

  Raises UsageError for what no other question will change, such as a wrong key.
  """
  left = dict.fromkeys(run.questions.numbers)
  tries: collections.Counter[str] = collections.Counter()
  await _finish(run, batches, plan)
  while pending := _pending(run, left, tries, on_settled):
    keys = pending.copy()
    while keys and (room := run.room(batch=True)):
      size = int(min(plan.questions, len(keys), room))
      run.journal.job(_name(run, keys[:size]), keys[:size])
      del keys[:size]
    if not run.journal.open_jobs():
      return
    await _finish(run, batches, plan)
    tries.update(set(pending) - set(keys) - run.journal.answers.keys())


def _pending(
  run: Run,
  left: dict[int, None],
  tries: collections.Counter[str],
  on_settled: Callable[[History], None],
) -> list[str]:
  """Keys of the next questions; those that were tried too often are given up for this start.

  Takes out of `left` what is settled.
  """
  pending, run.unanswered = [], 0
  for number in list(left):
    so_far = run.history(number)
    if so_far.open is None:
      del left[number]
      on_settled(so_far)
    elif tries[key := run.questions.key(number, so_far.open)] < run.pace.tries:
      pending.append(key)
    else:
      run.unanswered += 1
  return pending


def _name(run: Run, keys: Sequence[str]) -> str:
  """Told by the questions, and by how often just these were in a batch before."""
  digest = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
  return f"spatial-vlm-{digest}-{sum(tuple(keys) == old for old in run.journal.jobs.values())}"


async def _finish(run: Run, batches: GeminiBatches, plan: BatchPlan) -> None:
  """Brings all open batches to their end."""
  jobs = run.journal.open_jobs().items()
  await asyncio.gather(*(_run_job(run, batches, plan, name, keys) for name, keys in jobs))


async def _run_job(
  run: Run, batches: GeminiBatches, plan: BatchPlan, name: str, keys: Sequence[str]
) -> None:
  """One batch, from wherever it stands; it stays open where the server cannot be reached."""

  def questions() -> Iterator[tuple[str, Question]]:
    places = run.questions.places
    return ((key, run.questions.question(*places[key])) for key in keys if key in places)

  async def store(state: BatchState) -> None:
    unanswered = [key for key in keys if key not in run.journal.answers]
    async for key, result in batches.results(state, unanswered):
      run.take(key, result, batch=True)

  try:
    job = await _patiently(run.pace, name, lambda: batches.create(name, questions()))
    while not (state := await _patiently(run.pace, name, lambda: batches.poll(job))).ended:
      await asyncio.sleep(plan.poll_s)
    await _patiently(run.pace, name, lambda: store(state))
  except (Busy, Lost, Refused) as error:
    run.stop(f"{name}: {error}; its results are fetched by the next start")
    return
  run.journal.end(name, state.state)


async def _patiently(pace: Pace, name: str, call: Callable[[], Awaitable[T]]) -> T:
  """The result of a call that may be made again; what goes wrong at its last try is raised."""
  for tries in range(1, pace.tries):
    try:
      return await call()
    except (Busy, Lost) as error:
      wait_s = error.retry_after_s if isinstance(error, Busy) else None
      await asyncio.sleep(max(wait_s or 0.0, pace.delay_s(name, tries)))
  return await call()
