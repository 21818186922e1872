"""Cost of a run in tokens and money: spent, reserved and still affordable."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.teacher import Usage, sum_usage


@dataclasses.dataclass(frozen=True)
class Prices:
  """US dollars per million tokens."""

  input_usd: float
  cached_usd: float
  """Price of cached input tokens."""
  output_usd: float
  """Price of output tokens, thinking included."""
  batch_share: float
  """Factor on these prices in the Batch API."""

  def __post_init__(self):
    if min(dataclasses.astuple(self)) < 0:
      raise UsageError(f"prices are {dataclasses.asdict(self)}; none may be negative")

  def usd(self, usage: Usage, batch: bool) -> float:
    """Returns the cost: (prompt − cached)·input + cached·cache + (answer + thoughts)·output.

    >>> Prices(1.25, 0.31, 10, 0.5).usd(Usage(1000, 0, 400, 600), batch=False)
    0.01125
    """
    each = (
      (usage.prompt - usage.cached) * self.input_usd
      + usage.cached * self.cached_usd
      + (usage.answer + usage.thoughts) * self.output_usd
    )
    return each * (self.batch_share if batch else 1) / 1e6

  def __str__(self) -> str:
    return (
      f"{self.input_usd:g} USD per million input tokens ({self.cached_usd:g} if cached) and {self.output_usd:g} per "
      f"million output tokens, times {self.batch_share:g} in batches"
    )


class Ledger:
  """Enforces the budget of one workdir.

  The ledger reserves the maximum cost of every question in flight, so the budget holds whatever the teacher writes. A
  question that never got an answer stays reserved, because it may have been billed. A reply whose server does not tell
  its tokens counts at the maximum. If a server ignores the limit on tokens, the dearest reply so far is the maximum.
  """

  def __init__(self, journal: Journal, prices: Prices, max_usage: Usage, budget_usd: float | None):
    """Reads spent tokens from the journal.

    Args:
      journal: of the workdir.
      prices: of the teacher.
      max_usage: most tokens of one question.
      budget_usd: limit of all spending; None for no limit.
    """
    self.prices, self.budget_usd = prices, budget_usd
    self._journal, self._max_usage = journal, max_usage
    self._in_flight = 0
    self._spent_usd, self._counted = 0.0, 0
    self._dearest_usd = 0.0
    """Cost of the dearest reply, outside a batch."""

  @property
  def spent_usd(self) -> float:
    """Cost of all replies. The sum is kept, because it is read before each question."""
    for billed in self._journal.billed[self._counted :]:
      if any(billed.usage):
        self._spent_usd += self.prices.usd(billed.usage, billed.batch)
        self._dearest_usd = max(self._dearest_usd, self.prices.usd(billed.usage, batch=False))
      else:
        self._spent_usd += self._max_usd(billed.batch)
    self._counted = len(self._journal.billed)
    return self._spent_usd

  @property
  def must_wait(self) -> bool:
    """Whether a question in flight has to end before it is known if the budget allows one more.

    The first reply is awaited alone, because it shows whether the server keeps to the limit on tokens.
    """
    if self.budget_usd is None or not self._in_flight or not self._max_usd(batch=False):
      return False
    return not self._journal.billed or self.affordable_questions(batch=False) < 1

  @property
  def unconfirmed_usd(self) -> float:
    """Maximum cost of the questions that may have been billed without an answer."""
    count = len(self._journal.lost) + len(self._journal.interrupted)
    return count * self._max_usd(batch=False)

  @property
  def reserved_usd(self) -> float:
    """Maximum cost of the questions in flight, including those in batches."""
    in_batches = len(self._journal.questions_in_batches())
    return self._in_flight * self._max_usd(batch=False) + in_batches * self._max_usd(batch=True)

  @contextlib.contextmanager
  def reserve(self) -> Iterator[None]:
    """Reserves the maximum cost of one question for the body of the `with`."""
    self._in_flight += 1
    try:
      yield
    finally:
      self._in_flight -= 1

  def affordable_questions(self, batch: bool) -> float:
    """Returns how many more questions the budget allows; infinity without a budget or a price."""
    spent_usd = self.spent_usd  # first, since a dear reply raises the maximum
    each = self._max_usd(batch)
    if self.budget_usd is None or not each:
      return math.inf
    left = self.budget_usd - spent_usd - self.unconfirmed_usd - self.reserved_usd
    return max(0, int(left / each))

  def summary(self) -> dict[str, Any]:
    """Returns the figures as plain JSON."""
    billed = self._journal.billed
    return {
      "usd": self.spent_usd,
      "budget_usd": self.budget_usd,
      "answers": len(billed),
      "batch_answers": sum(each.batch for each in billed),
      "answers_without_usage": sum(not any(each.usage) for each in billed),
      "tokens": sum_usage(each.usage for each in billed)._asdict(),
      "lost": self._journal.lost,
      "in_flight_when_stopped": self._journal.interrupted,
      "doubtful_usd_at_most": self.unconfirmed_usd,
    }

  def mean_usage(self) -> Usage | None:
    """Returns the rounded mean usage of the replies so far; None without any."""
    if not (billed := self._journal.billed):
      return None
    return Usage(
      *(round(tokens / len(billed)) for tokens in sum_usage(each.usage for each in billed))
    )

  def _max_usd(self, batch: bool) -> float:
    dearest_usd = self._dearest_usd * (self.prices.batch_share if batch else 1)
    return max(self.prices.usd(self._max_usage, batch), dearest_usd)
