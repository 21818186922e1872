"""`results.json`: one row of figures for each method, and what the recalls of each behavior brought."""

import dataclasses
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import BadRecord, Take
from spatial_vlm.data.split_guard import is_held_out
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores
from spatial_vlm.evaluation.statistics import Share, wilson
from spatial_vlm.jsonl import read_object
from spatial_vlm.text import markdown_table, short_line


def result_row(method: str, scores: Scores, skipped: int | None = None) -> dict[str, Any]:
  """Returns one row of `results.json`.

  Args:
    method: its name.
    scores: of its answers.
    skipped: number of records without an answer, where it is known.

  `accuracy` is that of answers in the form that was asked for, `extracted` that of verdicts in whatever form.
  Seconds per answer are the mean, so that falling back to a long answer shows.
  """
  return {
    "method": method,
    "accuracy": scores["accuracy"],
    "ci_low": scores["ci_low"],
    "ci_high": scores["ci_high"],
    "n": scores["n"],
    "extracted": scores["extracted"],
    "groups": scores["groups"],
    "skipped": skipped,
    "generated_tokens_mean": scores["generated_tokens_mean"],
    "total_tokens_mean": scores["total_tokens_mean"],
    "seconds_per_answer": scores["seconds_mean"],
    "parse_rate": scores["parse_rate"],
    "box_iou": scores.get("box_iou"),
  }


def skipped_records(
  bad: Iterable[BadRecord], predictions: Iterable[Prediction], examples: Take
) -> list[dict[str, Any]]:
  """Returns the records without an answer, as `results.json` lists them.

  Args:
    bad: rows that could not be read as records; they have no id.
    predictions: the answers.
    examples: the records that were asked about. One without an answer has an unreadable image or too long a prompt.
  """
  unanswered = sorted({*range(len(examples))} - {p.id for p in predictions})
  unread = [{"id": None, "file": b.file, "line": b.line, "reason": b.reason} for b in bad]
  return unread + [
    dict(zip(("id", "file", "line", "reason"), (id, *examples.origin(id), None), strict=True))
    for id in unanswered
  ]


def results_json(rows: Sequence[Mapping[str, Any]], **others: Any) -> str:
  """Returns the text of `results.json`: `{"rows": [...]}` with the rows of `result_row`, then `others`.

  A figure that does not apply is null.
  """
  return to_json({"rows": list(rows), **others})


def to_json(content: Mapping[str, Any]) -> str:
  """Returns the text of a JSON file; ValueError for a number that is not finite."""
  return json.dumps(content, indent=2, allow_nan=False) + "\n"


@dataclasses.dataclass(frozen=True)
class RecallCount:
  """How often a behavior was recalled, and what that brought."""

  recalls: int
  successes: int
  """Recalls that were answered right."""
  saved_tokens: float | None
  """Mean number of tokens by which these answers are shorter than full chains; None where no chain was answered."""

  def __post_init__(self):
    if not all(type(count) is int for count in (self.recalls, self.successes)):
      raise ValueError(f"counts are whole numbers, got {self}")
    saved = self.saved_tokens
    if saved is not None and not (type(saved) in (int, float) and math.isfinite(saved)):
      raise ValueError(f"saved_tokens is {saved!r}")
    if not 0 <= self.successes <= self.recalls:
      raise ValueError(f"0 ≤ successes ≤ recalls does not hold for {self}")


def count_recalls(
  predictions: Sequence[Prediction], chain_tokens: float | None = None
) -> dict[str, RecallCount]:
  """Counts the recalls of each behavior, in the order of the names.

  Args:
    predictions: answers, some of them with a recalled behavior.
    chain_tokens: mean length of a full chain, which a recall is compared to; without it, the mean of the answers
      that recalled nothing.
  """
  recalled: dict[str, list[Prediction]] = defaultdict(list)
  plain = [p.generated_tokens for p in predictions if not p.retrieved]
  for prediction in predictions:
    if prediction.retrieved:
      recalled[prediction.retrieved].append(prediction)
  if chain_tokens is None and plain:
    chain_tokens = mean(plain)
  return {
    name: RecallCount(
      recalls=len(found),
      successes=sum(p.right for p in found),
      saved_tokens=None
      if chain_tokens is None
      else chain_tokens - mean(p.generated_tokens for p in found),
    )
    for name, found in sorted(recalled.items())
  }


def recalls_json(recalls: Mapping[str, RecallCount]) -> dict[str, dict[str, Any]]:
  """Returns what `read_recalls` reads under `recalls` of results.json."""
  return {name: dataclasses.asdict(count) for name, count in recalls.items()}


def read_recalls(paths: Iterable[epath.PathLike]) -> dict[str, RecallCount]:
  """Sums the recalls of behaviors over several `results.json`; saved tokens are averaged over the recalls.

  Raises UsageError for a file that does not count recalls, and for one of held-out or unnamed records: a handbook that
  is chosen by them would be measured on them.
  """
  counts: dict[str, list[RecallCount]] = defaultdict(list)
  for path in paths:
    try:
      content = read_object(path)
      for name, count in content["recalls"].items():
        counts[name].append(RecallCount(**count))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise UsageError(
        f"{path} counts no recalls ({short_line(repr(error))}); give a results.json that `evaluate` wrote"
      ) from error
    split = content.get("split")
    if not isinstance(split, str):
      raise UsageError(
        f"{path} does not name the split of its records; start `evaluate` again in its workdir"
      )
    if content.get("held_out") or is_held_out(split):
      raise UsageError(
        f"{path} counts recalls on {split!r}, a split to measure on; evaluate on training records"
      )
  return {name: _sum(found) for name, found in counts.items()}


def _sum(counts: Sequence[RecallCount]) -> RecallCount:
  measured = [
    (c.recalls, c.saved_tokens) for c in counts if c.recalls and c.saved_tokens is not None
  ]
  weight = sum(recalls for recalls, _ in measured)
  return RecallCount(
    recalls=sum(c.recalls for c in counts),
    successes=sum(c.successes for c in counts),
    saved_tokens=sum(r * saved for r, saved in measured) / weight if weight else None,
  )


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the result table in Markdown, its columns padded so that it reads in a terminal as well.

  Columns of groups and of skipped records are there if a row has them.
  """
  groups = any(row.get("groups") for row in rows)  # rows of earlier versions have neither
  skipped = any(row.get("skipped") is not None for row in rows)
  header = [
    "method",
    "accuracy, 95 % CI",
    "extracted, 95 % CI",
    *(["groups all right", "groups all right, extracted"] if groups else []),
    *(["skipped"] if skipped else []),
    "generated tokens",
    "total tokens",
    "s/answer",
    "parse rate",
    "box IoU",
  ]
  return markdown_table(
    header,
    [
      [
        row["method"],
        rate_text(row),
        rate_text(row.get("extracted")),
        *(group_texts(row.get("groups")) if groups else []),
        *([number(row.get("skipped"), "{:,}")] if skipped else []),
        number(row["generated_tokens_mean"], "{:.1f}"),
        number(row["total_tokens_mean"], "{:.1f}"),
        number(row["seconds_per_answer"], "{:.3f}"),
        fraction_text(row["parse_rate"], row["n"]),
        number(row["box_iou"], "{:.2f}"),
      ]
      for row in rows
    ],
  )


def group_texts(groups: Mapping[str, Any] | None) -> list[str]:
  """Returns the shares of groups whose answers are all right, by both readings."""
  return [rate_text(groups and groups[reading]) for reading in ("strict", "extracted")]


def rate_text(rate: Mapping[str, Any] | None) -> str:
  """Returns accuracy and interval in percent; a dash for None."""
  return "–" if rate is None else _interval(rate["accuracy"], rate["ci_low"], rate["ci_high"])


def share_text(share: Share | None) -> str:
  """Returns a share and its interval in percent; a dash for None."""
  return "–" if share is None else _interval(share["share"], share["ci_low"], share["ci_high"])


def fraction_text(fraction: float | None, n: int) -> str:
  """Returns a share of n cases and its Wilson interval in percent; a dash for None."""
  return "–" if fraction is None else _interval(fraction, *wilson(round(fraction * n), n))


def _interval(share: float, low: float, high: float) -> str:
  return f"{100 * share:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def number(value: float | None, form: str) -> str:
  """Returns the value in the given format; a dash for None."""
  return "–" if value is None else form.format(value)
