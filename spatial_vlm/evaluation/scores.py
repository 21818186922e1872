"""Scores of a method from its stored answers.

`score` measures answers to any task; `score_statements` adds what only yes and no, boxes and VSR's categories allow.

Every share comes with its number of cases and a 95 % interval (Wilson 1927). An answer that does
not parse is wrong for every label, and is also counted separately.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypedDict

import numpy as np

from spatial_vlm.answers import STATEMENT, Grammar
from spatial_vlm.evaluation.boxes import box_scores
from spatial_vlm.evaluation.contrastive_pairs import Key, both_right, of_one_caption, of_one_image
from spatial_vlm.evaluation.extracted_scores import ExtractedScores, extracted_scores
from spatial_vlm.evaluation.predictions import CANNOT_TELL, Prediction
from spatial_vlm.evaluation.statistics import Rate, Share, rate

UNALLOCATED = "Unallocated"
"""VSR's own meta-category for relations that belong to none of the other six."""


class Scores(ExtractedScores):
  """What `score` measures; plain JSON. Shares are fractions; None marks what does not apply."""

  n: int
  right: int
  accuracy: float
  ci_low: float
  ci_high: float
  parse_rate: float | None
  truncated_rate: float
  retrieved_rate: float
  cannot_tell_rate: float
  by_relation: dict[str, Rate]
  generated_tokens_mean: float
  prompt_tokens_mean: float
  total_tokens_mean: float
  seconds_n: int
  seconds_mean: float | None
  seconds_p50: float | None
  seconds_p95: float | None


class StatementScores(Scores):
  """What `score_statements` measures."""

  balanced_accuracy: float | None
  f1: float | None
  yes_rate: float
  box_n: int
  box_iou: float | None
  correct_with_wrong_boxes: Share | None
  correct_with_swapped_boxes: Share | None
  binding_errors: Share | None
  by_category: dict[str, Rate]
  pairs: Rate | None
  image_pairs: Rate | None


def score(predictions: Sequence[Prediction], grammar: Grammar) -> Scores:
  """Scores the answers of one method to a task whose answers have this grammar.

  - `parse_rate`: share of the written answers whose text is one whole answer, not cut off; None for
    a method that writes none.
  - `extracted`, `by_stratum`, `groups`: see `extracted_scores`.

  Raises ValueError when there is nothing to score, or when an id occurs twice.
  """
  _check_ids(predictions)
  return Scores(
    **rate([p.right for p in predictions]),
    **extracted_scores(predictions),
    **_writing(predictions, grammar),
    by_relation=rates_by(predictions, lambda p: p.relations),
    **_costs(predictions),
  )


def score_statements(
  predictions: Sequence[Prediction],
  meta_category: Mapping[str, str] = MappingProxyType({}),
  grammar: Grammar = STATEMENT,
) -> StatementScores:
  """Scores the answers of one method to statements that are true or false.

  `meta_category` maps a relation to its meta-category (VSR has seven); a relation it lacks is
  "Unallocated". `grammar` is that of the answers.

  - `balanced_accuracy`: mean of the accuracies on true and on false statements; None unless both
    occur.
  - `f1`: of "yes"; an unparsable answer to a true statement is a miss. None when nothing is true or
    called true.
  - `yes_rate`: share of *all* answers whose verdict is yes (not of the labels, not of the parsed
    ones).
  - `box_*`, `correct_with_*`, `binding_errors`: see `box_scores`.
  - `pairs`, `image_pairs`: share of contrastive pairs with both answers right; the former have one
    caption with a true and a false image, the latter one image with a true and a false caption about
    the same objects (see `contrastive_pairs`).
  - The other figures and the errors are those of `score`.
  """
  _check_ids(predictions)
  return StatementScores(
    **rate([p.right for p in predictions]),
    **extracted_scores(predictions),
    balanced_accuracy=_balanced_accuracy(predictions),
    f1=_f1(predictions),
    yes_rate=_mean(p.verdict == 1 for p in predictions),
    **_writing(predictions, grammar),
    **box_scores(predictions, grammar),
    by_relation=rates_by(predictions, lambda p: p.relations),
    by_category=rates_by(predictions, lambda p: [meta_category.get(p.relation, UNALLOCATED)]),
    pairs=_pair_rate(predictions, of_one_caption),
    image_pairs=_pair_rate(predictions, of_one_image),
    **_costs(predictions),
  )


def _check_ids(predictions: Sequence[Prediction]) -> None:
  if not predictions:
    raise ValueError("no predictions to score; answer at least one example first")
  repeated = [id for id, count in Counter(p.id for p in predictions).items() if count > 1]
  if repeated:
    raise ValueError(
      f"{len(repeated)} ids occur twice (first: {repeated[0]}); keep one prediction for each example"
    )


class _Writing(TypedDict):
  parse_rate: float | None
  truncated_rate: float
  retrieved_rate: float
  cannot_tell_rate: float


def _writing(predictions: Sequence[Prediction], grammar: Grammar) -> _Writing:
  return _Writing(
    parse_rate=_parse_rate(predictions, grammar),
    truncated_rate=_mean(p.truncated for p in predictions),
    retrieved_rate=_mean(p.retrieved is not None for p in predictions),
    cannot_tell_rate=_mean(p.verdict == CANNOT_TELL for p in predictions),
  )


class _Costs(TypedDict):
  generated_tokens_mean: float
  prompt_tokens_mean: float
  total_tokens_mean: float
  seconds_n: int
  seconds_mean: float | None
  seconds_p50: float | None
  seconds_p95: float | None


def _costs(predictions: Sequence[Prediction]) -> _Costs:
  seconds = [p.seconds for p in predictions if p.seconds is not None]
  generated = _mean(p.generated_tokens for p in predictions)
  prompt = _mean(p.prompt_tokens for p in predictions)
  return _Costs(
    generated_tokens_mean=generated,
    prompt_tokens_mean=prompt,
    total_tokens_mean=prompt + generated,
    seconds_n=len(seconds),
    seconds_mean=_mean(seconds) if seconds else None,
    seconds_p50=float(np.percentile(seconds, 50)) if seconds else None,
    seconds_p95=float(np.percentile(seconds, 95)) if seconds else None,
  )


def _balanced_accuracy(predictions: Sequence[Prediction]) -> float | None:
  recalls = [[p.right for p in predictions if p.label == label] for label in (0, 1)]
  return _mean(map(_mean, recalls)) if all(recalls) else None


def _f1(predictions: Sequence[Prediction]) -> float | None:
  hits = sum(p.label == 1 and p.verdict == 1 for p in predictions)
  called, true = sum(p.verdict == 1 for p in predictions), sum(p.label == 1 for p in predictions)
  return 2 * hits / (called + true) if called + true else None


def _parse_rate(predictions: Sequence[Prediction], grammar: Grammar) -> float | None:
  written = [p for p in predictions if p.text or p.generated_tokens]
  if not written:
    return None
  return _mean(
    p.verdict == CANNOT_TELL or (grammar.parse(p.text) is not None and not p.truncated)
    for p in written
  )


def rates_by(
  predictions: Sequence[Prediction], names: Callable[[Prediction], Iterable[str]]
) -> dict[str, Rate]:
  """Returns the accuracy of the answers under each of their names, in the order of the names."""
  groups = defaultdict(list)
  for p in predictions:
    for name in names(p):
      groups[name].append(p.right)
  return {name: rate(groups[name]) for name in sorted(groups)}


def _pair_rate(predictions: Sequence[Prediction], key: Key) -> Rate | None:
  pairs = both_right(predictions, key)
  return rate([*pairs.values()]) if pairs else None


def _mean(values: Iterable[float]) -> float:
  return float(np.mean(list(values)))
