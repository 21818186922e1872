"""The Markdown report of several finished evaluations, from what `runs_comparison` found.

Names and settings come from files and the command line, so they reach the report only through `escaped`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from spatial_vlm.evaluation.figures import accuracy_intervals
from spatial_vlm.evaluation.results import group_texts, number, rate_text, share_text
from spatial_vlm.evaluation.results_report import p_value, points, points_interval
from spatial_vlm.evaluation.runs_comparison import Row
from spatial_vlm.text import escaped, markdown_table, percent

SIGNIFICANT = 0.05
"""Level of the test that finds a model that is right without seeing."""
_DIFFERENCE = ("difference, points", "95 % CI")


def runs_report(found: Mapping[str, Any], figure: str, provenance: Mapping[str, str]) -> str:
  """Returns the report; a part without rows is skipped.

  Args:
    found: from `compare_runs`.
    figure: the file of `draw_runs` in the same folder.
    provenance: what the report was made from.
  """
  rows = found["rows"]
  sections = [
    "# Evaluations, compared",
    f"Rows: {len(rows)}. Intervals of shares are Wilson's at 95 %. Strict: the answer has the form that was asked for. "
    "Extracted: the verdict is read from any wording. Guessing, which always gives the most frequent label: "
    f"{percent(found['guess'])}.",
    results_table(rows),
    f"![Accuracy of every row]({figure})",
    *_part("How the rows differ", settings_table(rows) if rows[0]["settings"] else ""),
    *_part(
      f"Against {escaped(rows[0]['name'])}, paired",
      paired_table(rows),
      "Exact McNemar tests on the records that both answered, with Tango's score interval; tokens with a paired "
      "bootstrap of 10,000 resamples.",
    ),
    *_part(
      "With and without the image",
      controls_table(found["controls"]),
      "The difference is the accuracy with the image less that without. Labels are those of the original image: a "
      "model that uses what it sees falls to guessing. Decided: accuracy without the image among the answers that "
      "state a verdict; p is that of an accuracy no better than guessing, and a small one finds a model that is right "
      "without seeing.",
      "\n".join(map(finding, found["controls"])),
    ),
    *_part(
      "Reasoning against direct answers",
      reasoning_table(found["reasoning"]),
      "A negative difference means that reasoning lowers the accuracy.",
    ),
    *_part(
      "Spread over templates",
      templates_table(found["templates"]),
      "The same records in several wordings; p is that of Cochran's Q test of equal accuracy.",
    ),
    *_part(
      "Contrastive pairs",
      pairs_table(found["pairs"]),
      "Both answers of a pair must be right; guessing is right in 25 %. Pairs that differ in the image have one "
      "caption; pairs that differ in the caption have one image and the same two objects in another relation or "
      "direction.",
    ),
    *_part(
      "Right verdicts through wrong boxes",
      boxes_table(found["boxes"]),
      "Wrong: a named object's box is missing or has an IoU below 0.5. Swapped: it lies nearer to another object.",
    ),
    *_part("By relation and stratum", strata_table(found["strata"]), "Rows with the image."),
    "## How it was made",
    "\n".join(f"- {escaped(what)}: {escaped(how)}" for what, how in provenance.items()),
  ]
  return "\n\n".join(sections) + "\n"


def _part(title: str, table: str, *before: str) -> list[str]:
  return [f"## {title}", *before, table] if table else []


def results_table(rows: Sequence[Row]) -> str:
  """Returns accuracy by both readings, parsed answers and tokens of every row, and of groups if there are any."""
  groups = any(row["groups"] for row in rows)
  header = ["row", "n", "skipped", "strict, 95 % CI", "extracted, 95 % CI"]
  header += ["groups all right", "groups all right, extracted"] if groups else []
  header += ["parsed", "cannot tell", "generated tokens", "total tokens"]
  cells = [
    [
      escaped(row["name"]),
      f"{row['strict']['n']:,}",
      f"{row['skipped']:,}",
      rate_text(row["strict"]),
      rate_text(row["extracted"]),
      *(group_texts(row["groups"]) if groups else []),
      share_text(row["parsed"]),
      share_text(row["cannot_tell"]),
      *(number(row[f"{kind}_tokens_mean"], "{:.1f}") for kind in ("generated", "total")),
    ]
    for row in rows
  ]
  return markdown_table(header, cells)


def settings_table(rows: Sequence[Row]) -> str:
  """Returns the settings in which the rows differ."""
  names = [*rows[0]["settings"]]
  cells = [
    [escaped(row["name"]), *(_setting(row["settings"][name]) for name in names)] for row in rows
  ]
  return markdown_table(["row", *map(escaped, names)], cells, text_columns=len(names) + 1)


def _setting(value: Any) -> str:
  return "–" if value in (None, "") else escaped(str(value))


def paired_table(rows: Sequence[Row]) -> str:
  """Returns the differences from the first row."""
  header = ["row", *_DIFFERENCE, "only first right", "only this right", "McNemar p"]
  header += ["tokens, difference", "95 % CI"]
  cells = [
    [
      escaped(row["name"]),
      *_difference(row["paired"]),
      f"{row['paired']['only_a']:,}",
      f"{row['paired']['only_b']:,}",
      p_value(row["paired"]["p_value"]),
      *_tokens(row["tokens"]),
    ]
    for row in rows[1:]
  ]
  return markdown_table(header, cells) if cells else ""


def _difference(paired: Mapping[str, Any]) -> list[str]:
  return [points(paired["difference"]), points_interval(paired["ci_low"], paired["ci_high"])]


def _tokens(tokens: Mapping[str, Any]) -> list[str]:
  change, low, high = (
    f"{round(tokens[key], 1) + 0.0:+.1f}".replace("-", "−")
    for key in ("difference", "ci_low", "ci_high")
  )
  return [change, f"{low} to {high}"]


def controls_table(rows: Sequence[Row]) -> str:
  """Returns the accuracies with the image and under each control."""
  header = ["row", "control", "read", "with the image", "without", *_DIFFERENCE, "McNemar p"]
  header += ["same verdict", "no verdict", "cannot tell", "decided", "p, above guessing"]
  cells = [
    [
      escaped(row["name"]),
      escaped(row["control"]),
      row["reading"],
      rate_text(row["with_image"]),
      rate_text(row["without_image"]),
      *_difference(row["paired"]),
      p_value(row["paired"]["p_value"]),
      *(share_text(row[name]) for name in ("same_verdict", "no_verdict", "cannot_tell")),
      rate_text(row["decided"]),
      "–" if row["above_guessing"] is None else p_value(row["above_guessing"]),
    ]
    for row in rows
  ]
  return markdown_table(header, cells, text_columns=3) if cells else ""


def finding(row: Row) -> str:
  """Returns in words whether a row is right without seeing."""
  subject = f"{escaped(row['name'])}, {escaped(row['control'])}, {row['reading']}"
  if row["above_guessing"] is None:
    return f"- {subject}: no verdict, or nothing to guess."
  decided, p = row["decided"], p_value(row["above_guessing"])
  figures = (
    f"{percent(decided['accuracy'])} of {decided['n']:,} verdicts without the image, guessing {percent(row['guess'])}, "
    f"p {p if p[0] == '<' else f'= {p}'}"
  )
  if row["above_guessing"] < SIGNIFICANT:
    return f"- **{subject}: right without seeing** ({figures})."
  return f"- {subject}: no better than guessing ({figures})."


def reasoning_table(rows: Sequence[Row]) -> str:
  """Returns reasoned answers next to direct ones."""
  header = ["direct", "reasoned", "same policy", "direct accuracy", "reasoned accuracy"]
  header += [*_DIFFERENCE, "McNemar p", "tokens, difference", "95 % CI"]
  cells = [
    [
      escaped(row["direct"]),
      escaped(row["reasoned"]),
      "yes" if row["same_policy"] else "no",
      rate_text(row["direct_accuracy"]),
      rate_text(row["reasoned_accuracy"]),
      *_difference(row["paired"]),
      p_value(row["paired"]["p_value"]),
      *_tokens(row["tokens"]),
    ]
    for row in rows
  ]
  return markdown_table(header, cells, text_columns=3) if cells else ""


def templates_table(rows: Sequence[Row]) -> str:
  """Returns mean, least and greatest accuracy over templates."""
  header = ["rows", "read", "n", "mean", "min", "max", "Cochran p", "right in every wording"]
  cells = [
    [
      escaped(", ".join(row["names"])),
      row["reading"],
      f"{row['n']:,}",
      percent(row["mean"]),
      rate_text(row["min"]),
      rate_text(row["max"]),
      p_value(row["p_value"]),
      share_text(row["always_right"]),
    ]
    for row in rows
  ]
  return markdown_table(header, cells, text_columns=2) if cells else ""


def pairs_table(rows: Sequence[Row]) -> str:
  """Returns the contrastive pairs with both answers right."""
  header = ["row", "differ in", "pairs", "both right, 95 % CI", *_DIFFERENCE, "McNemar p"]
  cells = [
    [
      escaped(row["name"]),
      row["differ_in"],
      f"{row['both_right']['n']:,}",
      rate_text(row["both_right"]),
      *(_difference(row["paired"]) if "paired" in row else ["–", "–"]),
      p_value(row["paired"]["p_value"]) if "paired" in row else "–",
    ]
    for row in rows
    if row["both_right"]
  ]
  return markdown_table(header, cells, text_columns=2) if cells else ""


def boxes_table(rows: Sequence[Row]) -> str:
  """Returns how often a right verdict comes with wrong boxes."""
  header = ["row", "answers", "box IoU", "right, wrong boxes", "right, swapped boxes"]
  header += ["boxes nearer to another object"]
  names = ("correct_with_wrong_boxes", "correct_with_swapped_boxes", "binding_errors")
  cells = [
    [
      escaped(row["name"]),
      f"{row['box_n']:,}",
      number(row["box_iou"], "{:.3f}"),
      *(share_text(row[name]) for name in names),
    ]
    for row in rows
    if row["box_n"]
  ]
  return markdown_table(header, cells) if cells else ""


def strata_table(rows: Sequence[Row]) -> str:
  """Returns the accuracy of every run in each relation and stratum."""
  if not rows:
    return ""
  runs = [*rows[0]["rates"]]
  cells = [
    [
      escaped(row["stratum"]),
      escaped(row["value"]),
      *(rate_text(row["rates"][run]) for run in runs),
    ]
    for row in rows
  ]
  return markdown_table(["stratum", "value", *map(escaped, runs)], cells, text_columns=2)


def draw_runs(found: Mapping[str, Any], path: epath.PathLike) -> None:
  """Draws the accuracy of every row by both readings, and that of guessing."""
  drawn = {
    row["name"]: {reading: row[reading] for reading in ("strict", "extracted")}
    for row in found["rows"]
  }
  accuracy_intervals(drawn, found["guess"], path)
