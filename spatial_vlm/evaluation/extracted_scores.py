"""Strict and extracted accuracies next to each other: of all answers, of each stratum and of groups.

A strict answer has the form that was asked for; an extracted one states its verdict in whatever form
(`answer_extraction`).
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.statistics import Rate, outcomes, rate


class BothRates(TypedDict):
  """The two accuracies of the same answers."""

  strict: Rate
  extracted: Rate


class ExtractedScores(TypedDict):
  """What `extracted_scores` measures."""

  extracted: Rate
  by_stratum: dict[str, dict[str, BothRates]]
  groups: BothRates | None


def extracted_scores(predictions: Sequence[Prediction]) -> ExtractedScores:
  """Returns the figures that are given in both readings.

  - `extracted`: accuracy of the extracted verdicts.
  - `by_stratum`: accuracies by stratum (meta-category, votes, source …) and value.
  - `groups`: share of groups whose answers are all right, as in circular evaluation; an answer without a group is one
    of its own. None if no answer has a group.
  """
  strata: dict[str, dict[str, list[Prediction]]] = defaultdict(lambda: defaultdict(list))
  for p in predictions:
    for name, value in p.strata.items():
      strata[name][value].append(p)
  grouped = BothRates(
    strict=rate([*outcomes(predictions).values()]),
    extracted=rate([*outcomes(predictions, lambda p: p.extracted).values()]),
  )
  return ExtractedScores(
    extracted=rate([p.right_extracted for p in predictions]),
    by_stratum={
      name: {value: _both(found) for value, found in sorted(values.items())}
      for name, values in sorted(strata.items())
    },
    groups=grouped if any(p.group for p in predictions) else None,
  )


def _both(predictions: Sequence[Prediction]) -> BothRates:
  return BothRates(
    strict=rate([p.right for p in predictions]),
    extracted=rate([p.right_extracted for p in predictions]),
  )
