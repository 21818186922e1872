"""Shares with Wilson intervals, and paired tests between methods on the same examples."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from scipy import optimize, stats

from spatial_vlm.evaluation.predictions import Prediction


class Rate(TypedDict):
  """A share of right answers with its Wilson interval at 95 %."""

  n: int
  right: int
  accuracy: float
  ci_low: float
  ci_high: float


class Share(TypedDict):
  """A share of cases with its Wilson interval at 95 %."""

  n: int
  count: int
  share: float
  ci_low: float
  ci_high: float


def rate(right: Sequence[bool]) -> Rate:
  """Returns the share of True with Wilson's 95 % interval; `right` must not be empty."""
  n, k = len(right), sum(right)
  low, high = wilson(k, n)
  return Rate(n=n, right=k, accuracy=k / n, ci_low=low, ci_high=high)


def share(hits: Sequence[bool]) -> Share | None:
  """Returns the share of True with Wilson's 95 % interval; None if there is no case."""
  if not hits:
    return None
  n, k = len(hits), sum(hits)
  low, high = wilson(k, n)
  return Share(n=n, count=k, share=k / n, ci_low=low, ci_high=high)


def wilson(k: int, n: int) -> tuple[float, float]:
  """Returns Wilson's 95 % interval of k cases among n (Wilson 1927)."""
  interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
  return float(interval.low), float(interval.high)


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


Outcomes = Mapping[Any, bool]
"""Key of an example, or of a pair of them → whether the answer is right."""


def strict_verdict(p: Prediction) -> int:
  """Returns the verdict of an answer in the form that was asked for."""
  return p.verdict


def outcomes(
  predictions: Sequence[Prediction], read: Callable[[Prediction], int] = strict_verdict
) -> dict[int | str, bool]:
  """Returns whether each answer is right, by the id of its example.

  Answers with a group are one case, under the group's name, and right together: the copies of one question do not
  count as independent answers.

  Args:
    predictions: answers of one method.
    read: returns the verdict of an answer.
  """
  found: dict[int | str, bool] = {}
  for p in predictions:
    case = p.group or p.id
    found[case] = found.get(case, True) and read(p) == p.label
  return found


def answered_by_both(
  a: Sequence[Prediction], b: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction]]:
  """Returns the answers of both to the examples that both answered, in the order of the ids."""
  first, second = ({p.id: p for p in predictions} for predictions in (a, b))
  common = sorted(first.keys() & second.keys())
  return [first[id] for id in common], [second[id] for id in common]


def mcnemar(a: Sequence[Prediction], b: Sequence[Prediction]) -> Paired:
  """Runs `paired_test` on the answers of two methods; groups are one case each (see `outcomes`)."""
  both = answered_by_both(a, b)
  return paired_test(*map(outcomes, both if both[0] else (a, b)))


def paired_test(a: Outcomes, b: Outcomes) -> Paired:
  """Runs the exact McNemar test (binomial on the discordant cases), with Tango's score interval of the difference.

  Cases that only one side answered (because the other's prompt was too long, say) are skipped. Raises ValueError when
  none is left.
  """
  both = a.keys() & b.keys()
  n = len(both)
  if not n:
    raise ValueError(
      f"a paired test needs examples in common: {len(a)} and {len(b)} given, none on both sides"
    )
  only_a = sum(a[key] and not b[key] for key in both)
  only_b = sum(b[key] and not a[key] for key in both)
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


def cochran_q(runs: Sequence[Outcomes]) -> float:
  """Returns the p-value of Cochran's Q test that k methods are equally accurate on the same examples (Cochran 1950).

  Q = (k − 1)(k Σⱼ Cⱼ² − T²) / (k T − Σᵢ Rᵢ²), with Cⱼ right answers of method j, Rᵢ of example i and T in all. Q has
  the χ² distribution with k − 1 degrees of freedom. Examples that not every method answered are skipped. Returns 1
  where all methods are right on the same examples.
  """
  common = set.intersection(*(set(run) for run in runs))
  right = np.array([[run[key] for key in common] for run in runs], int).reshape(len(runs), -1)
  k, C, R, T = len(runs), right.sum(axis=1), right.sum(axis=0), right.sum()
  below = k * T - np.sum(R**2)
  if below == 0:
    return 1.0
  return float(stats.chi2.sf((k - 1) * (k * np.sum(C**2) - T**2) / below, k - 1))


@dataclasses.dataclass(frozen=True)
class MeanDifference:
  """Difference of two means over the same n examples, mean(b) − mean(a)."""

  n: int
  difference: float
  ci_low: float
  ci_high: float
  """95 % percentile interval of the bootstrap."""
  p_value: float
  """Two-sided: twice the share of the resamples on the other side of 0."""


RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 100


def paired_bootstrap(
  a: Mapping[Any, float], b: Mapping[Any, float], seed: int = 0
) -> MeanDifference:
  """Resamples examples with their values on both sides (paired percentile bootstrap, Efron and Tibshirani 1993).

  For means of numbers such as tokens, where McNemar's test does not apply. Raises ValueError if no example has a value
  on both sides.
  """
  both = [key for key in a if key in b]
  if not both:
    raise ValueError(
      f"a paired test needs examples in common: {len(a)} and {len(b)} given, none on both sides"
    )
  differences = np.array([b[key] - a[key] for key in both], float)
  n, rng = len(differences), np.random.default_rng(seed)
  means = np.concatenate(
    [
      differences[rng.integers(0, n, (_RESAMPLES_AT_ONCE, n))].mean(axis=1)
      for _ in range(RESAMPLES // _RESAMPLES_AT_ONCE)
    ]
  )
  low, high = np.percentile(means, (2.5, 97.5))
  # The sample itself counts as one more resample, so that no p-value is 0 (Davison and Hinkley 1997).
  tail = (min(np.sum(means <= 0), np.sum(means >= 0)) + 1) / (RESAMPLES + 1)
  return MeanDifference(
    n=n,
    difference=float(differences.mean()),
    ci_low=float(low),
    ci_high=float(high),
    p_value=min(1.0, 2 * float(tail)),
  )
