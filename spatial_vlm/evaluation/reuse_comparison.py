"""Comparison of reuse with full chains and with other behaviors in the prompt: rows, tables and a figure.

All arms are compared on the examples that each of them answered, and paired with a reference, the arm of full chains.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.evaluation.figures import Point, scatter
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.results import fraction_text, number, rate_text
from spatial_vlm.evaluation.results_report import p_value, points, points_interval
from spatial_vlm.evaluation.scores import Scores
from spatial_vlm.evaluation.statistics import mcnemar
from spatial_vlm.text import escaped, markdown_table


@dataclasses.dataclass(frozen=True)
class Arm:
  """Measured answers of one arm."""

  predictions: Sequence[Prediction]
  choosing_seconds: Mapping[int, float]
  """Id of a timed example → seconds in which its behavior was chosen: embedding and search."""
  behaviors: int
  """Number of behaviors that it chooses from; 0: it puts none into the prompt."""


def on_common_examples(arms: Mapping[str, Arm]) -> dict[str, Arm]:
  """Returns the arms with the answers to the examples that every arm answered.

  An arm skips a question whose prompt is too long. Raises UsageError if nothing is left.
  """
  common = set.intersection(*({p.id for p in arm.predictions} for arm in arms.values()))
  if not common:
    counts = ", ".join(f"{name}: {len(arm.predictions)}" for name, arm in arms.items())
    raise UsageError(f"no example was answered by every row ({counts}); raise prompt_shapes")
  return {
    name: dataclasses.replace(arm, predictions=[p for p in arm.predictions if p.id in common])
    for name, arm in arms.items()
  }


def comparison_row(name: str, arm: Arm, reference: Arm, scores: Scores) -> dict[str, Any]:
  """Returns one row of `results.json`; None marks what does not apply.

  - `hit_rate`: share of the questions with a behavior in the prompt; `fallback_rate`: share that an arm with
    behaviors asks for the full chain instead.
  - `seconds_*`: of a question that is asked alone; `answer_seconds_*` leave out choosing the behavior.
  - `difference` and what follows: accuracy less that of the reference, on the same examples.
  - `token_ratio`, `total_token_ratio`: tokens of the reference for one token of this arm.
  """
  predictions = arm.predictions
  hits = float(np.mean([p.retrieved is not None for p in predictions]))
  seconds = {p.id: p.seconds for p in predictions if p.seconds is not None}
  answer_seconds = [s - arm.choosing_seconds.get(id, 0.0) for id, s in seconds.items()]
  row = {
    "method": name,
    **{key: scores[key] for key in ("n", "accuracy", "ci_low", "ci_high", "parse_rate")},
    "extracted": scores["extracted"],
    "generated_tokens_mean": scores["generated_tokens_mean"],
    "prompt_tokens_mean": scores["prompt_tokens_mean"],
    "total_tokens_mean": scores["total_tokens_mean"],
    "token_ratio": _ratio(reference, arm, lambda p: p.generated_tokens),
    "total_token_ratio": _ratio(reference, arm, lambda p: p.generated_tokens + p.prompt_tokens),
    **_percentiles("seconds", list(seconds.values())),
    **_percentiles("answer_seconds", answer_seconds),
    "behaviors": arm.behaviors,
    "hit_rate": hits if arm.behaviors else None,
    "fallback_rate": 1 - hits if arm.behaviors else None,
    "by_relation": scores["by_relation"],
  }
  if arm is reference:
    return row
  return row | {"paired": dataclasses.asdict(mcnemar(reference.predictions, predictions))}


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
  return {f"{name}_p{p}": float(np.percentile(seconds, p)) if seconds else None for p in (50, 95)}


def _ratio(reference: Arm, arm: Arm, tokens: Callable[[Prediction], int]) -> float | None:
  mean = float(np.mean([tokens(p) for p in arm.predictions]))
  return float(np.mean([tokens(p) for p in reference.predictions])) / mean if mean else None


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of accuracy, cost and use of behaviors."""
  header = [
    "method",
    "accuracy, 95 % CI",
    "extracted",
    "generated",
    "prompt",
    "total tokens",
    "fewer generated",
  ]
  header += ["s, p50", "p95", "without choosing: p50", "p95", "behaviors", "hits", "fallbacks"]
  cells = [
    [
      row["method"],
      rate_text(row),
      rate_text(row["extracted"]),
      *(number(row[f"{kind}_tokens_mean"], "{:.1f}") for kind in ("generated", "prompt", "total")),
      number(row["token_ratio"], "{:.2f}×"),
      *(
        number(row[f"{kind}_p{p}"], "{:.3f}")
        for kind in ("seconds", "answer_seconds")
        for p in (50, 95)
      ),
      str(row["behaviors"]),
      fraction_text(row["hit_rate"], row["n"]),
      fraction_text(row["fallback_rate"], row["n"]),
    ]
    for row in rows
  ]
  return markdown_table(header, cells)


def paired_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of differences from the reference."""
  header = ["method", "difference, points", "95 % CI", "one-sided 95 % bound"]
  header += ["only reference right", "only this right", "McNemar p"]
  cells = [
    [
      row["method"],
      points(paired["difference"]),
      points_interval(paired["ci_low"], paired["ci_high"]),
      points(paired["lower_bound"]),
      f"{paired['only_a']:,}",
      f"{paired['only_b']:,}",
      p_value(paired["p_value"]),
    ]
    for row in rows
    if (paired := row.get("paired"))
  ]
  return markdown_table(header, cells)


def relation_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of accuracies by relation."""
  first = rows[0]["by_relation"]
  cells = [
    [
      escaped(relation),
      f"{first[relation]['n']:,}",
      *(rate_text(row["by_relation"][relation]) for row in rows),
    ]
    for relation in first
  ]
  return markdown_table(["relation", "n", *(row["method"] for row in rows)], cells)


def comparison_report(
  rows: Sequence[Mapping[str, Any]], left_out: int, figure: str, provenance: Mapping[str, str]
) -> str:
  """Returns the Markdown report.

  Args:
    rows: from `comparison_row`, the reference first, all on the same examples.
    left_out: number of records that not every row answered.
    figure: the file of `draw_comparison` in the same folder.
    provenance: what the rows were made with.
  """
  reference = rows[0]["method"]
  sections = [
    "# Reuse, compared",
    f"Every row answers the same {rows[0]['n']:,} held-out statements; {left_out:,} others, which not every row "
    "answered (unreadable, or the prompt is too long), are left out. Intervals are Wilson's at 95 %. Prompt tokens "
    "include the image and the behaviors. Seconds are those of a question asked alone.",
    comparison_table(rows),
    f"## Against {reference}, paired",
    "Exact McNemar tests on the same statements, with Tango's score interval. A row loses less than δ points when its "
    "one-sided bound is above −δ.",
    paired_table(rows),
    "## Accuracy against total tokens",
    f"![Accuracy against total tokens]({figure})",
    "## By relation",
    relation_table(rows),
    "## How it was made",
    "\n".join(f"- {escaped(what)}: {escaped(how)}" for what, how in provenance.items()),
  ]
  return "\n\n".join(sections) + "\n"


def draw_comparison(rows: Sequence[Mapping[str, Any]], path: epath.PathLike) -> None:
  """Draws accuracy, with its interval, against the total tokens of a question."""
  drawn = {
    row["method"]: Point(
      row["total_tokens_mean"],
      *(100 * row[key] for key in ("accuracy", "ci_low", "ci_high")),
    )
    for row in rows
  }
  scatter(drawn, "prompt and generated tokens of a question, mean", "accuracy, %", path)
