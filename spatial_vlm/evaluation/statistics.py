"""Rates with Wilson intervals, and paired tests between two methods on the same examples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypedDict

from scipy import optimize, stats

from spatial_vlm.evaluation.predictions import Prediction


class Rate(TypedDict):
  """A share of right answers with its Wilson interval at 95 %."""

  n: int
  right: int
  accuracy: float
  ci_low: float
  ci_high: float


def rate(right: Sequence[bool]) -> Rate:
  """Returns the share of True with Wilson's 95 % interval; `right` must not be empty."""
  n, k = len(right), sum(right)
  interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
  return Rate(
    n=n, right=k, accuracy=k / n, ci_low=float(interval.low), ci_high=float(interval.high)
  )


@dataclasses.dataclass(frozen=True)
class Paired:
  """Comparison of methods a and b on the same n examples; differences are accuracy(b) − accuracy(a)."""

  n: int
  only_a: int
  """Number of examples that only a answers rightly."""
  only_b: int
  p_value: float
  """Two-sided exact McNemar test of equal accuracy."""
  difference: float
  ci_low: float
  ci_high: float
  """95 % score interval of the difference."""
  lower_bound: float
  """One-sided 95 % bound: b loses less than a margin δ when `lower_bound` > −δ."""


def mcnemar(a: Sequence[Prediction], b: Sequence[Prediction]) -> Paired:
  """Runs the exact McNemar test (binomial on the discordant pairs), with Tango's score interval of the difference.

  Examples that only one side answered (because the other's prompt was too long, say) are skipped. Raises ValueError
  when none is left.
  """
  right_a, right_b = ({p.id: p.right for p in method} for method in (a, b))
  both = right_a.keys() & right_b.keys()
  n = len(both)
  if not n:
    raise ValueError(
      f"a paired test needs examples in common: {len(right_a)} and {len(right_b)} given, none on both sides"
    )
  only_a = sum(right_a[id] and not right_b[id] for id in both)
  only_b = sum(right_b[id] and not right_a[id] for id in both)
  discordant = only_a + only_b
  return Paired(
    n=n,
    only_a=only_a,
    only_b=only_b,
    p_value=float(stats.binomtest(only_b, discordant, 0.5).pvalue) if discordant else 1.0,
    difference=(only_b - only_a) / n,
    ci_low=paired_lower_bound(only_b, only_a, n, 0.975),
    ci_high=-paired_lower_bound(only_a, only_b, n, 0.975),
    lower_bound=paired_lower_bound(only_b, only_a, n, 0.95),
  )


def paired_lower_bound(gains: int, losses: int, n: int, confidence: float) -> float:
  """Returns the one-sided lower score bound of Δ = (gains − losses)/n for paired proportions (Tango 1998).

  Solves (b − c − nΔ) / √(n(2q + Δ(1 − Δ))) = z for Δ, where q is the maximum-likelihood share of
  losses given Δ. Unlike Wald's interval it keeps its level with few discordant pairs and has a width
  with none.
  """
  b, c, z = gains, losses, float(stats.norm.ppf(confidence))
  estimate = (b - c) / n
  if estimate == -1:
    return -1.0

  def excess(delta: float) -> float:
    B = (2 * n - b + c) * delta - b - c
    C = -c * delta * (1 - delta)
    q = (math.sqrt(max(B * B - 8 * n * C, 0.0)) - B) / (4 * n)
    return b - c - n * delta - z * math.sqrt(max(n * (2 * q + delta * (1 - delta)), 0.0))

  return float(optimize.root_scalar(excess, bracket=(-1.0, estimate - 1e-12), xtol=1e-12).root)
