"""The Markdown report that compares several methods on the same statements.

Captions, relations and answers come from files and models, so they reach the report only through
`escaped` or `fenced`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.results import (
  fraction_text,
  number,
  rate_text,
  result_row,
  results_table,
  share_text,
)
from spatial_vlm.evaluation.scores import UNALLOCATED, StatementScores
from spatial_vlm.evaluation.statistics import Paired, Rate, mcnemar
from spatial_vlm.text import escaped, fenced, markdown_table, percent

BOX_SHARES = ("correct_with_wrong_boxes", "correct_with_swapped_boxes", "binding_errors")
"""Shares of the table of boxes, in the order of its columns."""
Runs = Mapping[str, Sequence[Prediction]]
"""Answers by method; all methods answer the same examples."""


@dataclasses.dataclass(frozen=True)
class Aim:
  """An aim that was judged on measured answers."""

  name: str
  met: bool
  figures: str
  """The figures that the judgement rests on, in words."""


@dataclasses.dataclass(frozen=True)
class Report:
  """What a report shows."""

  runs: Runs
  """Every part shows the methods in this order; the result table shows only those in `rows`."""
  scores: Mapping[str, StatementScores]
  rows: Sequence[str]
  """Methods of the result table."""
  pairs: Sequence[tuple[str, str]]
  """Methods that are compared: the second less the first."""
  aims: Sequence[Aim]
  meta_category: Mapping[str, str]
  """Relation → its meta-category."""
  figures: Mapping[str, str]
  """Caption → file name, in the folder of the report."""
  provenance: Mapping[str, str]
  """How the report was made: settings, versions, …"""


def markdown_report(report: Report) -> str:
  """Returns the whole report."""
  runs, scores, meta_category = report.runs, report.scores, report.meta_category
  questions = len(next(iter(runs.values())))
  sections = [
    "# Spatial reasoning, measured",
    f"Every method answers the same {questions:,} held-out statements. Intervals are Wilson's at 95 %; an answer that "
    "does not parse is wrong. Total tokens are those read and written.",
    results_table([result_row(method, scores[method]) for method in report.rows]),
    *one_word_notes(scores),
    "## Aims",
    _aims_section(report.aims),
    "## Neighbouring rows, paired",
    "Exact McNemar tests on the same statements; the difference is the lower row less the upper one, with Tango's "
    "score interval.",
    _paired_table(runs, report.pairs),
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
    *_figure_sections(report.figures),
    "## Two statements, every method",
    "The first two of the set, not chosen.",
    _first_answers(runs, count=2),
    "## How it was made",
    "\n".join(f"- {escaped(what)}: {escaped(how)}" for what, how in report.provenance.items()),
  ]
  return "\n\n".join(section for section in sections if section) + "\n"


ONE_WORD_SHARE = 0.99
"""Share of all answers from which one verdict counts as the only one."""


def one_word_notes(scores: Mapping[str, StatementScores]) -> list[str]:
  """Returns a sentence about each model that gives one verdict whatever it is asked; its accuracy says nothing."""
  notes = []
  for method, s in scores.items():
    shares = {"yes": s["yes_rate"], "no": (s["parse_rate"] or 0.0) - s["yes_rate"]}
    word = max(shares, key=lambda name: shares[name])
    if s["parse_rate"] is not None and shares[word] >= ONE_WORD_SHARE:
      notes.append(
        f"**{escaped(method)} is untrained in effect.** It says {word} to {percent(shares[word])} of the statements, "
        "whatever they are: its accuracy is the share of such labels."
      )
  return notes


def _aims_section(judged: Sequence[Aim]) -> str:
  if not judged:
    return "The rows that the aims compare were not measured."
  return "\n".join(
    f"- **{aim.name[0].upper()}{aim.name[1:]}: {met(aim.met)}.** {aim.figures}" for aim in judged
  )


def _paired_table(runs: Runs, pairs: Sequence[tuple[str, str]]) -> str:
  if not pairs:
    return ""
  rows = []
  for upper, lower in pairs:
    paired = mcnemar(runs[upper], runs[lower])
    rows.append(
      [
        f"{upper} → {lower}",
        points(paired.difference),
        points_interval(paired.ci_low, paired.ci_high),
        f"{paired.only_a:,}",
        f"{paired.only_b:,}",
        p_value(paired.p_value),
      ]
    )
  return markdown_table(
    ["rows", "difference, points", "95 % CI", "only upper right", "only lower right", "p"], rows
  )


def _beyond_accuracy(scores: Mapping[str, StatementScores]) -> str:
  header = [
    "method",
    "balanced accuracy",
    "F1",
    "yes-rate",
    "pairs of images, both right",
    "pairs of captions, both right",
    "cut off",
    "behavior retrieved",
    "prompt tokens",
    "s/answer, p50",
    "p95",
  ]
  rows = [
    [
      method,
      percent(s["balanced_accuracy"]),
      number(s["f1"], "{:.3f}"),
      fraction_text(s["yes_rate"], s["n"]),
      rate_text(s["pairs"]),
      rate_text(s["image_pairs"]),
      fraction_text(s["truncated_rate"], s["n"]),
      fraction_text(s["retrieved_rate"], s["n"]),
      number(s["prompt_tokens_mean"], "{:.1f}"),
      number(s["seconds_p50"], "{:.3f}"),
      number(s["seconds_p95"], "{:.3f}"),
    ]
    for method, s in scores.items()
  ]
  return markdown_table(header, rows) + (
    "\n\nA pair of images is one caption with a true and a false image. A pair of captions is one image with a true "
    "and a false caption about the same two objects. The yes-rate is the share of all answers that say yes."
  )


def _boxes_table(scores: Mapping[str, StatementScores]) -> str:
  rows = [
    [
      method,
      f"{s['box_n']:,}",
      number(s["box_iou"], "{:.3f}"),
      *(share_text(s[name]) for name in BOX_SHARES),
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
    "correct with wrong boxes",
    "correct with swapped boxes",
    "boxes nearer to another object",
  ]
  return markdown_table(header, rows) + (
    "\n\nIoU is over the objects that the statement names; a missing box counts 0. A correct answer has wrong "
    "boxes when the box of a named object has an IoU below 0.5 or is missing, and swapped boxes when it lies nearer to "
    "another object."
  )


def _group_table(
  scores: Mapping[str, StatementScores],
  group: str,
  names: Callable[[str], list[str]],
  header: list[str],
) -> str:
  rates: dict[str, Mapping[str, Rate]] = {method: s[group] for method, s in scores.items()}
  first = next(iter(rates.values()))
  rows = [
    [
      *names(name),
      f"{first[name]['n']:,}",
      *(rate_text(by_name[name]) for by_name in rates.values()),
    ]
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


def points(difference: float) -> str:
  """Returns a difference of shares in percentage points, with its sign."""
  return f"{100 * difference:+.1f}".replace("-", "−")


def points_interval(low: float, high: float) -> str:
  """Returns an interval of a difference in percentage points."""
  return f"{points(low)} to {points(high)}"


def p_value(p: float) -> str:
  """Returns a p-value with four decimals."""
  return "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def difference_text(paired: Paired) -> str:
  """Returns a paired difference with its interval, test and number of examples."""
  p = p_value(paired.p_value)
  return (
    f"{points(paired.difference)} points (95 % CI {points_interval(paired.ci_low, paired.ci_high)}, "
    f"McNemar p {p if p[0] == '<' else '= ' + p}, n = {paired.n:,})"
  )


def met(is_met: bool) -> str:
  """Returns the word for an aim that is met, or missed."""
  return "met" if is_met else "missed"


def _verdict(p: Prediction) -> str:
  stated = {1: "yes", 0: "no"}.get(p.verdict, "no verdict")
  return f"{stated}, {'right' if p.right else 'wrong'}"
