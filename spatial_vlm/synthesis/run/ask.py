"""Asks a teacher what the journal does not answer yet: many questions at once, each tried again until it is settled."""

import asyncio
import dataclasses
from collections.abc import Callable

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.history import History, Judge, history
from spatial_vlm.synthesis.run.journal import Answer, Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.limiter import Limiter, Pace
from spatial_vlm.synthesis.run.questions import Questions
from spatial_vlm.synthesis.teacher import Busy, Lost, Question, Refused, Reply, Teacher

Result = Answer | Busy | Lost
"""What came of a question that was sent once."""


_IN_VAIN = 20
"""Questions in a row without any use, at least as many as leave at once, that show that something is wrong."""


@dataclasses.dataclass
class Run:
  """One start: what is asked, by whom it is judged, and why it has to end early."""

  questions: Questions
  journal: Journal
  judge: Judge
  ledger: Ledger
  pace: Pace
  mixed_versions: bool
  """Whether answers of several versions of a model may stand in one set."""
  stopped: str = ""
  """Why no further question leaves; those in flight are waited for."""
  unanswered: int = 0
  """Questions given up for this start."""
  in_vain: int = 0
  """Questions in a row that came to nothing."""
  settled: dict[int, History] = dataclasses.field(default_factory=dict)
  """Of records about which nothing is open: that does not change any more."""

  def history(self, number: int) -> History:
    """What has become of a record so far."""
    if number in self.settled:
      return self.settled[number]
    so_far = history(self.questions, number, self.journal, self.judge)
    if so_far.open is None:
      self.settled[number] = so_far
    return so_far

  def stop(self, reason: str) -> None:
    self.stopped = self.stopped or reason

  def room(self, batch: bool) -> float:
    """Questions that may still leave; where the budget has none, the run stops."""
    room = 0 if self.stopped else self.ledger.affordable(batch)
    if not room:
      self.stop(
        f"budget_usd={self.ledger.budget_usd} leaves no room for another question: {self.ledger.spent_usd:.2f} USD are "
        f"spent, up to {self.ledger.reserved_usd:.2f} are under way and {self.ledger.doubtful_usd:.2f} may have been "
        "billed for answers that never came; raise it to go on"
      )
    return room

  def take(self, key: str, result: Result, batch: bool) -> None:
    """Writes down what came of a question; after many in vain, or an answer of another version, the run stops."""
    match result:
      case Reply():
        self.journal.reply(key, result, batch)
        self._check_version(result.model_version)
      case Refused():
        self.journal.refused(key, str(result))
      case Lost():
        self.journal.lose(key, str(result))
      case Busy():
        self.journal.busy(key, str(result))

  def count(self, result: Result) -> None:
    """Looks at what a question came to in the end."""
    self.in_vain = 0 if isinstance(result, Reply) else self.in_vain + 1
    self.unanswered += isinstance(result, Busy | Lost)
    if self.in_vain >= max(self.pace.concurrency, _IN_VAIN):
      self.stop(f"{self.in_vain} questions in a row came to nothing, the last one with: {result}")

  def _check_version(self, version: str) -> None:
    if self.mixed_versions or self.judge.model_version:
      return
    if others := self.journal.versions - {version}:
      self.stop(
        f"{version} answered after {', '.join(sorted(others))}: chains of several teachers would stand in one set; set "
        "model_version to the one whose answers count, or allow_mixed_versions"
      )


async def ask_all(
  run: Run, teacher: Teacher, on_settled: Callable[[History], None] = lambda history: None
) -> None:
  """Settles every record, as far as the run may; `on_settled` hears of each as it happens, and of those that were.

  Raises UsageError for what no other question will change, such as a wrong key.
  """
  limiter = Limiter(run.pace)
  waiting = iter(run.questions.numbers)

  async def work() -> None:
    for number in waiting:
      if run.stopped:
        return
      await _settle(run, number, teacher, limiter, on_settled)

  try:
    async with asyncio.TaskGroup() as workers:
      for _ in range(run.pace.concurrency):
        workers.create_task(work())
  except* Exception as group:
    raise group.exceptions[0] from None


async def _settle(
  run: Run,
  number: int,
  teacher: Teacher,
  limiter: Limiter,
  on_settled: Callable[[History], None],
) -> None:
  """Asks about one record until an answer is accepted or no attempt is left."""
  while (so_far := run.history(number)).open is not None:
    result = await _ask(run, number, so_far.open, teacher, limiter)
    if result is not None:
      run.count(result)
    if not isinstance(result, Answer):
      return
  on_settled(so_far)


async def _ask(
  run: Run, number: int, attempt: int, teacher: Teacher, limiter: Limiter
) -> Result | None:
  """What a question came to after all tries; None when the run stopped before it left."""
  key = run.questions.key(number, attempt)
  question = run.questions.question(number, attempt)
  result = None
  for tries in range(1, run.pace.tries + 1):
    async with limiter.turn():
      if not run.room(batch=False):
        return None
      result = await _try(run, key, question, teacher)
      if isinstance(result, Busy):
        limiter.pause(result.retry_after_s or 0.0)
    if isinstance(result, Answer):
      break
    if tries < run.pace.tries:
      await asyncio.sleep(run.pace.delay_s(key, tries))
  return result


async def _try(run: Run, key: str, question: Question, teacher: Teacher) -> Result:
  """Sends a question once; a cancellation in between leaves it in flight, as the journal shows."""
  run.journal.sent(key)
  try:
    with run.ledger.reserved():
      result: Result = await teacher.ask(question)
  except (Busy, Lost, Refused) as problem:
    result = problem
  except UsageError as error:
    run.journal.busy(key, str(error))
    raise
  run.take(key, result, batch=False)
  return result
