"""The result table, `results.json` and the Markdown report.

Captions, relations and answers come from files and models, so they reach the report only through
`escaped` or `fenced`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import UNALLOCATED, Scores
from spatial_vlm.evaluation.statistics import Paired, Rate, mcnemar
from spatial_vlm.text import escaped, fenced, markdown_table

MAJORITY = "majority"
ZERO_SHOT = "tiny base, zero-shot"
SFT_DIRECT = "SFT, direct answer"
SFT_CHAIN = "SFT, chain of thought"
DAPO_CHAIN = "DAPO, chain of thought"
DAPO_REUSE = "DAPO + reuse"
METHODS = (MAJORITY, ZERO_SHOT, SFT_DIRECT, SFT_CHAIN, DAPO_CHAIN, DAPO_REUSE)
"""Rows of the result table, in its order."""
REUSE_FULL_CHAIN = "DAPO + reuse, full chain"
"""Full chains by the weights of the reuse row: measured beside the table, since learning the
short form may change them."""

DAPO_GAIN = 0.03
REUSE_LOSS = 0.02
REUSE_TOKEN_RATIO = 3.4

Runs = Mapping[str, Sequence[Prediction]]
"""Answers by method; all methods answer the same examples."""


def result_row(method: str, scores: Scores) -> dict[str, Any]:
  """One row of `results.json`. Seconds per answer are the mean: falling back to a long answer
  has to show."""
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
    "box_iou": scores["box_iou"],
  }


def results_json(rows: Sequence[Mapping[str, Any]]) -> str:
  """Text of `results.json`: `{"rows": [...]}` with the rows of `result_row`; null where a figure
  does not apply."""
  return json.dumps({"rows": list(rows)}, indent=2, allow_nan=False) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The result table in Markdown, its columns padded so that it reads in a terminal as well."""
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
        _rate(row),
        _number(row["generated_tokens_mean"], "{:.1f}"),
        _number(row["total_tokens_mean"], "{:.1f}"),
        _number(row["seconds_per_answer"], "{:.3f}"),
        _percent(row["parse_rate"]),
        _number(row["box_iou"], "{:.2f}"),
      ]
      for row in rows
    ],
  )


@dataclasses.dataclass(frozen=True)
class Aim:
  """One of the method's aims, judged on the measured answers; `figures` says in words what it
  rests on."""

  name: str
  met: bool
  figures: str


def aims(runs: Runs, scores: Mapping[str, Scores]) -> list[Aim]:
  """The aims whose rows are there: the gain of DAPO over SFT on chains, and what reuse costs and
  saves."""
  judged = []
  if SFT_CHAIN in runs and DAPO_CHAIN in runs:
    judged.append(_dapo_aim(runs, scores))
  if DAPO_CHAIN in runs and DAPO_REUSE in runs:
    judged.append(_reuse_aim(runs, scores))
  return judged


def _dapo_aim(runs: Runs, scores: Mapping[str, Scores]) -> Aim:
  paired = mcnemar(runs[SFT_CHAIN], runs[DAPO_CHAIN])
  return Aim(
    f"DAPO at least {100 * DAPO_GAIN:g} points above SFT with chains",
    paired.difference >= DAPO_GAIN,
    f"DAPO answers {_percent(scores[DAPO_CHAIN]['accuracy'])} rightly, SFT {_percent(scores[SFT_CHAIN]['accuracy'])}: "
    f"{_difference(paired)}.",
  )


def _reuse_aim(runs: Runs, scores: Mapping[str, Scores]) -> Aim:
  paired = mcnemar(runs[DAPO_CHAIN], runs[DAPO_REUSE])
  full, short = (scores[method]["generated_tokens_mean"] for method in (DAPO_CHAIN, DAPO_REUSE))
  ratio = full / short if short else float("inf")
  keeps, saves = paired.lower_bound > -REUSE_LOSS, ratio >= REUSE_TOKEN_RATIO
  return Aim(
    f"reuse loses less than {100 * REUSE_LOSS:g} points (one-sided 95 % bound) at {REUSE_TOKEN_RATIO:g} times fewer "
    "generated tokens or better",
    keeps and saves,
    f"Reuse answers {_percent(scores[DAPO_REUSE]['accuracy'])} rightly, the full chain "
    f"{_percent(scores[DAPO_CHAIN]['accuracy'])}: {_difference(paired)}; with 95 % confidence the change is above "
    f"{_points(paired.lower_bound)} points, where −{100 * REUSE_LOSS:.1f} is allowed ({_met(keeps)}). It writes "
    f"{short:.1f} tokens in place of {full:.1f}, {ratio:.2f} times fewer, where {REUSE_TOKEN_RATIO:g} is asked "
    f"({_met(saves)}).",
  )


def markdown_report(
  runs: Runs,
  scores: Mapping[str, Scores],
  meta_category: Mapping[str, str],
  figures: Mapping[str, str],
  made: Mapping[str, str],
) -> str:
  """The whole report. `figures`: caption → file name beside the report; `made`: what → how (config,
  versions, …).

  Methods are shown in the order of `runs`; those beyond `METHODS` stand in every part but the
  result table.
  """
  rows = [result_row(method, scores[method]) for method in runs if method in METHODS]
  questions = len(next(iter(runs.values())))
  sections = [
    "# Spatial reasoning, measured",
    f"Every method answers the same {questions:,} held-out statements. Intervals are Wilson's at 95 %; an answer that "
    "does not parse is wrong. Total tokens are those read and written.",
    table(rows),
    "## Aims",
    _aims_section(aims(runs, scores)),
    "## Neighbouring rows, paired",
    "Exact McNemar tests on the same statements; the difference is the lower row less the upper one, with Tango's "
    "score interval.",
    _paired_table(runs),
    "## Beyond accuracy",
    _beyond_accuracy(scores),
    "## Boxes",
    _boxes_table(scores),
    "## By meta-category",
    _group_table(scores, "by_category", lambda name: [escaped(name)], ["meta-category"]),
    "## By relation",
    _group_table(
      scores,
      "by_relation",
      lambda name: [escaped(name), escaped(meta_category.get(name, UNALLOCATED))],
      ["relation", "category"],
    ),
    *_figure_sections(figures),
    "## Two statements, every method",
    "The first two of the set, not chosen.",
    _first_answers(runs, count=2),
    "## How it was made",
    "\n".join(f"- {escaped(what)}: {escaped(how)}" for what, how in made.items()),
  ]
  return "\n\n".join(section for section in sections if section) + "\n"


def _aims_section(judged: Sequence[Aim]) -> str:
  if not judged:
    return "The rows that the aims compare were not measured."
  return "\n".join(
    f"- **{aim.name[0].upper()}{aim.name[1:]}: {_met(aim.met)}.** {aim.figures}" for aim in judged
  )


def _paired_table(runs: Runs) -> str:
  methods = [method for method in METHODS if method in runs]
  pairs = list(zip(methods[:-1], methods[1:], strict=True))
  if REUSE_FULL_CHAIN in runs:
    pairs += [(other, REUSE_FULL_CHAIN) for other in (DAPO_CHAIN, DAPO_REUSE) if other in runs]
  if not pairs:
    return ""
  rows = []
  for upper, lower in pairs:
    paired = mcnemar(runs[upper], runs[lower])
    rows.append(
      [
        f"{upper} → {lower}",
        _points(paired.difference),
        f"{_points(paired.ci_low)} to {_points(paired.ci_high)}",
        f"{paired.only_a:,}",
        f"{paired.only_b:,}",
        _p_value(paired.p_value),
      ]
    )
  return markdown_table(
    ["rows", "difference, points", "95 % CI", "only upper right", "only lower right", "p"], rows
  )


def _beyond_accuracy(scores: Mapping[str, Scores]) -> str:
  header = [
    "method",
    "balanced accuracy",
    "F1",
    "yes-rate",
    "contrastive pairs, both right",
    "cut off",
    "behavior retrieved",
    "prompt tokens",
    "s/answer, p50",
    "p95",
  ]
  rows = [
    [
      method,
      _percent(s["balanced_accuracy"]),
      _number(s["f1"], "{:.3f}"),
      _percent(s["yes_rate"]),
      _rate(s["pairs"]),
      _percent(s["truncated_rate"]),
      _percent(s["retrieved_rate"]),
      _number(s["prompt_tokens_mean"], "{:.1f}"),
      _number(s["seconds_p50"], "{:.3f}"),
      _number(s["seconds_p95"], "{:.3f}"),
    ]
    for method, s in scores.items()
  ]
  return markdown_table(header, rows) + (
    "\n\nA pair is one caption with a true and a false image. The yes-rate is the share of all answers that say yes."
  )


def _boxes_table(scores: Mapping[str, Scores]) -> str:
  rows = [
    [
      method,
      f"{s['box_n']:,}",
      _number(s["box_iou"], "{:.3f}"),
      _percent(s["correct_with_wrong_boxes"]),
      _percent(s["binding_errors"]),
    ]
    for method, s in scores.items()
    if s["box_iou"] is not None
  ]
  if not rows:
    return "No method wrote boxes."
  header = [
    "method",
    "answers",
    "box IoU",
    "right through wrong boxes",
    "boxes nearer to another object",
  ]
  return markdown_table(header, rows) + (
    "\n\nIoU is over the objects that the statement names; a missing box counts 0. A right answer goes through wrong "
    "boxes when the box of a named object has an IoU below 0.5."
  )


def _group_table(
  scores: Mapping[str, Scores], group: str, names: Callable[[str], list[str]], header: list[str]
) -> str:
  rates: dict[str, Mapping[str, Rate]] = {method: s[group] for method, s in scores.items()}
  first = next(iter(rates.values()))
  rows = [
    [*names(name), f"{first[name]['n']:,}", *(_rate(by_name[name]) for by_name in rates.values())]
    for name in first
  ]
  return markdown_table([*header, "n", *rates], rows, text_columns=len(header))


def _figure_sections(figures: Mapping[str, str]) -> list[str]:
  if not figures:
    return []
  return [
    "## Figures",
    *(
      f"![{escaped(caption)}]({name})\n\n*{escaped(caption)}*" for caption, name in figures.items()
    ),
  ]


def _first_answers(runs: Runs, count: int) -> str:
  answers_by_id = {method: {p.id: p for p in predictions} for method, predictions in runs.items()}
  ids = sorted(next(iter(answers_by_id.values())))[:count]
  parts = []
  for id in ids:
    answers = [(method, by_id[id]) for method, by_id in answers_by_id.items()]
    statement = answers[0][1]
    parts.append(f"**{escaped(statement.caption)}** ({'true' if statement.label else 'false'})")
    for method, p in answers:
      parts.append(f"{method}: {_verdict(p)}" + (f"\n\n{fenced(p.text)}" if p.text else ""))
  return "\n\n".join(parts)


def _rate(rate: Mapping[str, Any] | None) -> str:
  if rate is None:
    return "–"
  return f"{100 * rate['accuracy']:.1f} % ({100 * rate['ci_low']:.1f}–{100 * rate['ci_high']:.1f})"


def _percent(share: float | None) -> str:
  return _number(share, "{:.1%}").replace("%", " %")


def _number(value: float | None, form: str) -> str:
  return "–" if value is None else form.format(value)


def _points(difference: float) -> str:
  return f"{100 * difference:+.1f}".replace("-", "−")


def _p_value(p: float) -> str:
  return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _difference(paired: Paired) -> str:
  p = _p_value(paired.p_value)
  return (
    f"{_points(paired.difference)} points (95 % CI {_points(paired.ci_low)} to {_points(paired.ci_high)}, "
    f"McNemar p {p if p[0] == '<' else '= ' + p}, n = {paired.n:,})"
  )


def _met(met: bool) -> str:
  return "met" if met else "missed"


def _verdict(p: Prediction) -> str:
  said = {1: "yes", 0: "no"}.get(p.verdict, "no verdict")
  return f"{said}, {'right' if p.right else 'wrong'}"
