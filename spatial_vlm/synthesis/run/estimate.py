"""Estimates what the remaining questions of a run will cost."""

import dataclasses

from spatial_vlm.synthesis.run.requests import SynthesisRun
from spatial_vlm.synthesis.teacher import Usage


@dataclasses.dataclass(frozen=True)
class EstimateSettings:
  """Assumptions of the estimate, used until there are replies to measure."""

  prompt_tokens: int
  """Tokens of one question."""
  output_tokens: int
  """Tokens of one answer, thinking included."""
  second_attempt_share: float
  """Share of the records that need a second attempt."""


@dataclasses.dataclass(frozen=True)
class CostEstimate:
  """Estimated remaining work."""

  records: int
  """Unsettled records."""
  questions: float
  usage: Usage
  """Tokens of one question."""
  usd: float
  spent_usd: float
  """Cost of earlier starts."""

  def __str__(self) -> str:
    return (
      f"{self.records:,} records are left: about {self.questions:,.0f} questions of {self.usage.prompt:,} tokens with "
      f"answers of {self.usage.answer + self.usage.thoughts:,}, {self.usd:.2f} USD; {self.spent_usd:.2f} USD are spent"
    )


def estimate_cost(run: SynthesisRun, settings: EstimateSettings, batch: bool) -> CostEstimate:
  """Estimates the cost of all unsettled records, from the mean usage of the replies so far if there are any."""
  progress = (run.progress(index) for index in run.questions.indices)
  attempts_left = [
    len(run.questions.attempts) - p.next_attempt for p in progress if p.next_attempt is not None
  ]
  count = sum(1 + settings.second_attempt_share * (left > 1) for left in attempts_left)
  usage = run.ledger.mean_usage() or Usage(settings.prompt_tokens, 0, settings.output_tokens, 0)
  usd = count * run.ledger.prices.usd(usage, batch)
  return CostEstimate(len(attempts_left), count, usage, usd, run.ledger.spent_usd)
