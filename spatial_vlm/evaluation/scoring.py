"""Figures of merit of a method from its stored answers, and paired tests between two methods.

Every share comes with its number of cases and a 95 % interval (Wilson 1927). An answer that does
not parse is wrong for either label, and is counted apart as well.
"""

import dataclasses
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypedDict

import numpy as np
from scipy import optimize, stats

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.records import Example

UNALLOCATED = "Unallocated"
"""VSR's own meta-category for relations that belong to none of the other six."""
RIGHT_BOX_IOU = 0.5
"""A box counts as right from this overlap on (PASCAL VOC's threshold)."""


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One stored answer; a line of JSON each way, so that an interrupted evaluation goes on from
  its file."""

  id: int
  """Number of the example in its source; pairs the answers of two methods."""
  caption: str
  relation: str
  label: int
  """1 true, 0 false."""
  verdict: int
  """1 yes, 0 no, −1 when the answer does not parse or was cut off."""
  text: str
  """The generated answer, without its end-of-turn token. Where the verdict came from
  log-probabilities this is still what the model wrote, and decides the parse rate."""
  boxes_true: dict[str, Box]
  generated_tokens: int
  prompt_tokens: int
  """Text, image and retrieved tokens that the model reads before it answers."""
  truncated: bool
  retrieved: str | None = None
  """Name of the behavior in the prompt; None where none was near enough or the method retrieves
  nothing."""
  seconds: float | None = None
  """Wall-clock time of this answer by itself, retrieval included; None when it was answered in a
  batch."""

  @property
  def right(self) -> bool:
    return self.verdict == self.label

  def to_json(self) -> str:
    """One line, without a line break."""
    return json.dumps(dataclasses.asdict(self))

  @classmethod
  def from_json(cls, line: str) -> "Prediction":
    """Reads a line of `to_json`. Raises ValueError for anything else (a line cut off by a kill
    among them)."""
    try:
      fields = json.loads(line)
      boxes = {
        name: (int(a), int(b), int(c), int(d))
        for name, (a, b, c, d) in fields["boxes_true"].items()
      }
      return cls(**fields | {"boxes_true": boxes})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise ValueError(
        f"not a stored prediction ({error!r}): {line[:80]!r}; delete the line to answer it again"
      ) from error


class Rate(TypedDict):
  """A share of right answers with its Wilson interval at 95 %."""

  n: int
  right: int
  accuracy: float
  ci_low: float
  ci_high: float


class Scores(TypedDict):
  """What `score` measures; plain JSON. Shares are fractions, None marks what does not apply."""

  n: int
  right: int
  accuracy: float
  ci_low: float
  ci_high: float
  balanced_accuracy: float | None
  f1: float | None
  yes_rate: float
  parse_rate: float | None
  truncated_rate: float
  retrieved_rate: float
  box_n: int
  box_iou: float | None
  right_through_wrong_boxes: float | None
  binding_errors: float | None
  by_relation: dict[str, Rate]
  by_category: dict[str, Rate]
  pairs: Rate | None
  generated_tokens_mean: float
  prompt_tokens_mean: float
  total_tokens_mean: float
  seconds_n: int
  seconds_mean: float | None
  seconds_p50: float | None
  seconds_p95: float | None


def score(
  predictions: Sequence[Prediction], meta_category: Mapping[str, str] = MappingProxyType({})
) -> Scores:
  """All figures of merit of one method.

  `meta_category` maps a relation to its meta-category (VSR has seven); a relation it lacks is
  "Unallocated".

  - `balanced_accuracy`: mean of the accuracies on true and on false statements; None unless both
    occur.
  - `f1`: of "yes"; an unparsable answer to a true statement is a miss. None when nothing is true or
    called true.
  - `yes_rate`: share of *all* answers whose verdict is yes (not of the labels, not of the parsed
    ones).
  - `parse_rate`: share of the written answers whose text is one whole answer, not cut off; None for
    a method that writes none.
  - `box_*`, `right_through_wrong_boxes`, `binding_errors`: see `box_scores`.
  - `pairs`: share of contrastive pairs (one caption, a true and a false image) with both answers
    right.

  Raises ValueError when there is nothing to score, or when an id occurs twice.
  """
  if not predictions:
    raise ValueError("no predictions to score; answer at least one example first")
  repeated = [id for id, count in Counter(p.id for p in predictions).items() if count > 1]
  if repeated:
    raise ValueError(
      f"{len(repeated)} ids occur twice (first: {repeated[0]}); keep one prediction for each example"
    )
  seconds = [p.seconds for p in predictions if p.seconds is not None]
  generated = _mean(p.generated_tokens for p in predictions)
  prompt = _mean(p.prompt_tokens for p in predictions)
  return Scores(
    **rate([p.right for p in predictions]),
    balanced_accuracy=_balanced_accuracy(predictions),
    f1=_f1(predictions),
    yes_rate=_mean(p.verdict == 1 for p in predictions),
    parse_rate=_parse_rate(predictions),
    truncated_rate=_mean(p.truncated for p in predictions),
    retrieved_rate=_mean(p.retrieved is not None for p in predictions),
    **box_scores(predictions),
    by_relation=_rates_by(predictions, lambda p: p.relation),
    by_category=_rates_by(predictions, lambda p: meta_category.get(p.relation, UNALLOCATED)),
    pairs=_pair_rate(predictions),
    generated_tokens_mean=generated,
    prompt_tokens_mean=prompt,
    total_tokens_mean=prompt + generated,
    seconds_n=len(seconds),
    seconds_mean=_mean(seconds) if seconds else None,
    seconds_p50=float(np.percentile(seconds, 50)) if seconds else None,
    seconds_p95=float(np.percentile(seconds, 95)) if seconds else None,
  )


def rate(right: Sequence[bool]) -> Rate:
  """Share of True with Wilson's 95 % interval. `right` must not be empty."""
  n, k = len(right), sum(right)
  interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
  return Rate(
    n=n, right=k, accuracy=k / n, ci_low=float(interval.low), ci_high=float(interval.high)
  )


def _balanced_accuracy(predictions: Sequence[Prediction]) -> float | None:
  recalls = [[p.right for p in predictions if p.label == label] for label in (0, 1)]
  return _mean(map(_mean, recalls)) if all(recalls) else None


def _f1(predictions: Sequence[Prediction]) -> float | None:
  hits = sum(p.label == 1 and p.verdict == 1 for p in predictions)
  called, true = sum(p.verdict == 1 for p in predictions), sum(p.label == 1 for p in predictions)
  return 2 * hits / (called + true) if called + true else None


def _parse_rate(predictions: Sequence[Prediction]) -> float | None:
  written = [p for p in predictions if p.text or p.generated_tokens]
  if not written:
    return None
  return _mean(answers.parse(p.text) is not None and not p.truncated for p in written)


def _rates_by(
  predictions: Sequence[Prediction], key: Callable[[Prediction], str]
) -> dict[str, Rate]:
  groups = defaultdict(list)
  for p in predictions:
    groups[key(p)].append(p.right)
  return {name: rate(groups[name]) for name in sorted(groups)}


def _pair_rate(predictions: Sequence[Prediction]) -> Rate | None:
  """Within a caption the k-th true example is paired with the k-th false one, in the order of
  ids; what is left over has no partner and does not count."""
  groups: dict[str, dict[int, list[bool]]] = defaultdict(lambda: {0: [], 1: []})
  for p in sorted(predictions, key=lambda p: p.id):
    groups[p.caption][p.label].append(p.right)
  both = [a and b for group in groups.values() for a, b in zip(group[0], group[1], strict=False)]
  return rate(both) if both else None


def _mean(values: Iterable[float]) -> float:
  return float(np.mean(list(values)))


# Boxes


class BoxScores(TypedDict):
  """How well the boxes that an answer names lie on the objects."""

  box_n: int
  box_iou: float | None
  right_through_wrong_boxes: float | None
  binding_errors: float | None


def box_scores(predictions: Sequence[Prediction]) -> BoxScores:
  """Are the boxes of the chains right, and does the verdict rest on them?

  - `box_n`: answers judged: those with true boxes that are chains, and those that do not parse.
  - `box_iou`: mean over these answers of the IoU of the objects named in the statement; a missing
    box counts 0.
  - `right_through_wrong_boxes`: share of the right ones among them in which the box of a named
    object has IoU < 0.5.
  - `binding_errors`: share of the predicted boxes that lie nearer to another object than to the one
    whose name they carry. Boxes with a name that the image does not hold have no right place and
    are not counted.

  All None when chains are not the usual form of the parsed answers: a method that answers in the
  short form has no boxes, and the few full chains it falls back on do not speak for it.
  """
  forms = [answers.parse(p.text) for p in predictions]
  judged = [
    (p, answer.boxes if answer else {})
    for p, answer in zip(predictions, forms, strict=True)
    if named_objects(p) and (answer is None or answer.form == "chain")
  ]
  parsed = [answer.form == "chain" for answer in forms if answer]
  if not judged or sum(parsed) * 2 <= len(parsed):
    return BoxScores(box_n=0, box_iou=None, right_through_wrong_boxes=None, binding_errors=None)
  ious = [
    [iou(boxes[n], p.boxes_true[n]) if n in boxes else 0.0 for n in named_objects(p)]
    for p, boxes in judged
  ]
  lucky = [min(row) < RIGHT_BOX_IOU for (p, _), row in zip(judged, ious, strict=True) if p.right]
  misbound = [
    nearest_object(box, p.boxes_true) != name
    for p, boxes in judged
    for name, box in boxes.items()
    if name in p.boxes_true
  ]
  return BoxScores(
    box_n=len(judged),
    box_iou=_mean(map(_mean, ious)),
    right_through_wrong_boxes=_mean(lucky) if lucky else None,
    binding_errors=_mean(misbound) if misbound else None,
  )


def named_objects(p: Prediction) -> list[str]:
  """Objects with a true box that the statement names, in the order of the statement.

  Longer names are found first, so that "red mug" is not also taken for "mug".
  """
  caption, found = p.caption.casefold(), {}
  for name in sorted(p.boxes_true, key=len, reverse=True):
    if match := re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", caption):
      found[name] = match.start()
      caption = caption[: match.start()] + "\0" * len(match[0]) + caption[match.end() :]
  return sorted(found, key=found.__getitem__)


def iou(a: Box, b: Box) -> float:
  """Intersection over union of two boxes x1, y1, x2, y2 with area."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  shared = max(width, 0) * max(height, 0)
  return shared / (_area(a) + _area(b) - shared)


def nearest_object(box: Box, objects: Mapping[str, Box]) -> str:
  """Name of the object that `box` overlaps most; among equals (none overlapped), the one with
  the nearest centre."""
  return max(
    objects, key=lambda name: (iou(box, objects[name]), -_centre_distance(box, objects[name]))
  )


def _area(box: Box) -> int:
  return (box[2] - box[0]) * (box[3] - box[1])


def _centre_distance(a: Box, b: Box) -> float:
  return math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2


# Two methods on the same examples


@dataclasses.dataclass(frozen=True)
class Paired:
  """Comparison of methods a and b on the same n examples; differences are accuracy(b) −
  accuracy(a)."""

  n: int
  only_a: int
  """Examples that a alone answers rightly."""
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
  """Exact McNemar test (binomial on the discordant pairs) with Tango's score interval for the
  difference.

  Examples that only one side answered (its prompt was too long, say) are left out; raises ValueError when nothing
  is left.
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
  """One-sided lower score bound of Δ = (gains − losses)/n for paired proportions (Tango 1998).

  Solves (b − c − nΔ) / √(n(2q + Δ(1 − Δ))) = z for Δ, where q is the maximum-likelihood share of
  losses given Δ. Unlike Wald's it keeps its level with few discordant pairs and has a width with
  none.
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


# The reference that sees nothing


def majority_predictions(
  train: Iterable[tuple[str, int]], test: Iterable[Example]
) -> list[Prediction]:
  """The likelier label of each relation in the training split, given as the answer to every test
  example.

  `train` holds (relation, label). A tie is called true; a relation never trained on takes the label
  that is likelier over all. Nothing is generated, so there is neither text nor tokens.
  """
  counts: dict[str, Counter[int]] = defaultdict(Counter)
  for relation, label in train:
    counts[relation][label] += 1
  overall = sum(counts.values(), Counter())

  def verdict(relation: str) -> int:
    seen = counts.get(relation, overall)
    return int(seen[1] >= seen[0])

  return [
    Prediction(
      id=example.id,
      caption=example.record.caption,
      relation=example.record.relation,
      label=example.record.label,
      verdict=verdict(example.record.relation),
      text="",
      boxes_true=example.boxes,
      generated_tokens=0,
      prompt_tokens=0,
      truncated=False,
    )
    for example in test
  ]
