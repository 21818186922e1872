"""`results.json`: one row of figures for each method, and how often each behavior was recalled."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import Scores
from spatial_vlm.text import markdown_table, percent


def result_row(method: str, scores: Scores) -> dict[str, Any]:
  """Returns one row of `results.json`.

  Seconds per answer are the mean, so that falling back to a long answer shows.
  """
  return {
    "method": method,
    "accuracy": scores["accuracy"],
    "ci_low": scores["ci_low"],
    "ci_high": scores["ci_high"],
    "n": scores["n"],
    "generated_tokens_mean": scores["generated_tokens_mean"],
    "total_tokens_mean": scores["total_tokens_mean"],
    "seconds_per_answer": scores["seconds_mean"],
    "parse_rate": scores["parse_rate"],
    "box_iou": scores.get("box_iou"),
  }


def results_json(rows: Sequence[Mapping[str, Any]], **others: Any) -> str:
  """Returns the text of `results.json`: `{"rows": [...]}` with the rows of `result_row`, then `others`.

  A figure that does not apply is null.
  """
  return json.dumps({"rows": list(rows), **others}, indent=2, allow_nan=False) + "\n"


def count_recalls(predictions: Iterable[Prediction]) -> dict[str, int]:
  """Counts how many questions recalled each behavior, in the order of the names."""
  return dict(sorted(Counter(p.retrieved for p in predictions if p.retrieved).items()))


def read_recalls(paths: Iterable[epath.PathLike]) -> Counter[str]:
  """Sums the recalls of behaviors over several `results.json`.

  Raises UsageError for a file that does not count recalls.
  """
  total: Counter[str] = Counter()
  for path in paths:
    try:
      recalls = json.loads(epath.Path(path).read_text())["recalls"]
      total.update({str(name): int(count) for name, count in recalls.items()})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise UsageError(
        f"{path} counts no recalls ({error!r}); give a results.json that `evaluate` wrote"
      ) from error
  return total


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the result table in Markdown, its columns padded so that it reads in a terminal as well."""
  header = [
    "method",
    "accuracy, 95 % CI",
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
        number(row["generated_tokens_mean"], "{:.1f}"),
        number(row["total_tokens_mean"], "{:.1f}"),
        number(row["seconds_per_answer"], "{:.3f}"),
        percent(row["parse_rate"]),
        number(row["box_iou"], "{:.2f}"),
      ]
      for row in rows
    ],
  )


def rate_text(rate: Mapping[str, Any] | None) -> str:
  """Returns accuracy and interval in percent; a dash for None."""
  if rate is None:
    return "–"
  return f"{100 * rate['accuracy']:.1f} % ({100 * rate['ci_low']:.1f}–{100 * rate['ci_high']:.1f})"


def number(value: float | None, form: str) -> str:
  """Returns the value in the given format; a dash for None."""
  return "–" if value is None else form.format(value)
