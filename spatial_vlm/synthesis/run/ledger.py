"""What questions cost: tokens and money, spent, possible and allowed."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.teacher import Usage, total


@dataclasses.dataclass(frozen=True)
class Prices:
  """US dollars for a million tokens."""

  input_usd: float
  cached_usd: float
  """Of the input, what the teacher had in its cache."""
  output_usd: float
  """Thoughts included."""
  batch_share: float
  """Of these prices, in the Batch API."""

  def __post_init__(self):
    if min(dataclasses.astuple(self)) < 0:
      raise UsageError(f"prices are {dataclasses.asdict(self)}; none may be below 0")

  def usd(self, usage: Usage, batch: bool) -> float:
    """(prompt − cached)·input + cached·cache + (answer + thoughts)·output

    >>> Prices(1.25, 0.31, 10, 0.5).usd(Usage(1000, 0, 400, 600), batch=False)
    0.01125
    """
    each = (
      (usage.prompt - usage.cached) * self.input_usd
      + usage.cached * self.cached_usd
      + (usage.answer + usage.thoughts) * self.output_usd
    )
    return each * (self.batch_share if batch else 1) / 1e6


class Ledger:
  """Money of one workdir. What a question may take at most is set aside while it is under way, so that the budget holds
  whatever the teacher writes; where no answer ever came it stays aside, since it may have been billed."""

  def __init__(self, journal: Journal, prices: Prices, most: Usage, budget_usd: float | None):
    """`most` is what one question may take at most; without a budget everything is allowed."""
    self.prices, self.budget_usd = prices, budget_usd
    self._journal, self._most = journal, most
    self._under_way = 0
    self._spent_usd, self._counted = 0.0, 0

  @property
  def spent_usd(self) -> float:
    """Of all answers; added up as they come, since it is asked for before each question."""
    for spent in self._journal.spent[self._counted :]:
      self._spent_usd += self.prices.usd(spent.usage, spent.batch)
    self._counted = len(self._journal.spent)
    return self._spent_usd

  @property
  def doubtful_usd(self) -> float:
    """The most that questions without an answer may have been billed."""
    count = len(self._journal.lost) + len(self._journal.interrupted)
    return count * self._most_usd(batch=False)

  @property
  def reserved_usd(self) -> float:
    """The most that questions under way may come to, those in batches included."""
    in_batches = len(self._journal.questions_in_batches())
    return self._under_way * self._most_usd(batch=False) + in_batches * self._most_usd(batch=True)

  @contextlib.contextmanager
  def reserved(self) -> Iterator[None]:
    """Around a single question that is under way."""
    self._under_way += 1
    try:
      yield
    finally:
      self._under_way -= 1

  def affordable(self, batch: bool) -> float:
    """Questions that the budget still has room for; infinitely many without a budget or without a price."""
    each = self._most_usd(batch)
    if self.budget_usd is None or not each:
      return math.inf
    left = self.budget_usd - self.spent_usd - self.doubtful_usd - self.reserved_usd
    return max(0, int(left / each))

  def _most_usd(self, batch: bool) -> float:
    return self.prices.usd(self._most, batch)

  def summary(self) -> dict[str, Any]:
    """Figures as plain JSON."""
    spent = self._journal.spent
    return {
      "usd": self.spent_usd,
      "budget_usd": self.budget_usd,
      "answers": len(spent),
      "batch_answers": sum(each.batch for each in spent),
      "tokens": total(each.usage for each in spent)._asdict(),
      "lost": self._journal.lost,
      "in_flight_when_stopped": self._journal.interrupted,
      "doubtful_usd_at_most": self.doubtful_usd,
    }

  def mean(self) -> Usage | None:
    """Of the answers so far, rounded; None without any."""
    if not (spent := self._journal.spent):
      return None
    return Usage(*(round(tokens / len(spent)) for tokens in total(each.usage for each in spent)))
