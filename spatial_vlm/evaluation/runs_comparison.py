"""What the answers of several finished evaluations show together, as plain JSON; every test is paired by example."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from spatial_vlm.answers import STATEMENT, Grammar
from spatial_vlm.evaluation.boxes import box_scores
from spatial_vlm.evaluation.contrastive_pairs import both_right, of_one_caption, of_one_image
from spatial_vlm.evaluation.extracted_scores import extracted_scores
from spatial_vlm.evaluation.predictions import CANNOT_TELL, Prediction
from spatial_vlm.evaluation.runs import (
  FinishedRun,
  differing_settings,
  direct_and_reasoned,
  of_several_templates,
  with_their_controls,
)
from spatial_vlm.evaluation.scores import rates_by
from spatial_vlm.evaluation.statistics import (
  Rate,
  answered_by_both,
  cochran_q,
  mcnemar,
  outcomes,
  paired_bootstrap,
  paired_test,
  rate,
  share,
)

READINGS: Mapping[str, Callable[[Prediction], int]] = {
  "strict": lambda p: p.verdict,
  "extracted": lambda p: p.extracted,
}
"""How an answer is read → its verdict: in the form that was asked for, or in any wording."""
PAIRS = {"images": of_one_caption, "captions": of_one_image}
"""What differs in a contrastive pair → what its statements have in common."""

Row = dict[str, Any]


def compare_runs(
  runs: Sequence[FinishedRun],
  statements: bool,
  grammar_of: Callable[[FinishedRun], Grammar] = lambda run: STATEMENT,
) -> dict[str, Any]:
  """Returns the content of `results.json`: one list of rows for each table of the report.

  Args:
    runs: the first is the reference of `rows` and `pairs`.
    statements: whether the answers are yes and no. Only they have pairs and boxes.
    grammar_of: returns the grammar of a run's answers, in which its boxes are read.

  Questions of circular evaluation are one case each, right if all their copies are (see `outcomes`), except in the
  accuracies of single answers (`rows`, `strata`).
  """
  reference = runs[0]
  settings = differing_settings(runs)
  return {
    "guess": guessing(reference.predictions),
    "rows": [run_row(run, reference, settings) for run in runs],
    "controls": [
      control_row(seen, unseen, reading)
      for seen, unseen in with_their_controls(runs)
      for reading in READINGS
    ],
    "reasoning": [reasoning_row(*pair) for pair in direct_and_reasoned(runs)],
    "templates": [
      template_row(group, reading) for group in of_several_templates(runs) for reading in READINGS
    ],
    "pairs": [pair_row(run, reference, what) for what in PAIRS for run in runs if statements],
    "boxes": [box_row(run, grammar_of(run)) for run in runs if statements],
    "strata": stratum_rows([run for run in runs if not run.control]),
  }


def guessing(predictions: Sequence[Prediction]) -> float | None:
  """Returns the accuracy of always giving the most frequent label.

  Words and numbers are left out: their label 0 stands for the right one, whatever it is. None where the other labels
  are all equal, or there are none.
  """
  counts = Counter(p.label for p in predictions if not p.is_short)
  return max(counts.values()) / counts.total() if len(counts) > 1 else None


def run_row(run: FinishedRun, reference: FinishedRun, settings: Sequence[str]) -> Row:
  """Returns one run: its settings that differ, its accuracy by both readings, and its difference from the reference."""
  predictions = run.predictions
  row = {
    "name": run.name,
    "settings": {name: run.settings.get(name) for name in settings},
    "skipped": run.skipped,
    "strict": rate([p.right for p in predictions]),
    "extracted": rate([p.right_extracted for p in predictions]),
    "groups": extracted_scores(predictions)["groups"],
    "parsed": share([p.verdict >= 0 for p in predictions]),
    "cannot_tell": share([p.verdict == CANNOT_TELL for p in predictions]),
    "generated_tokens_mean": float(np.mean([p.generated_tokens for p in predictions])),
    "total_tokens_mean": float(
      np.mean([p.generated_tokens + p.prompt_tokens for p in predictions])
    ),
  }
  if run is reference:
    return row
  tokens = paired_bootstrap(_generated(reference), _generated(run))
  return row | {
    "paired": dataclasses.asdict(mcnemar(reference.predictions, predictions)),
    "tokens": dataclasses.asdict(tokens),
  }


def _generated(run: FinishedRun) -> dict[int, float]:
  return {p.id: p.generated_tokens for p in run.predictions}


def control_row(seen: FinishedRun, unseen: FinishedRun, reading: str) -> Row:
  """Returns one run with its images next to the same under a control.

  - `difference`: accuracy with the image less that without, so that a model that uses its image has a large one.
  - `decided`: accuracy without the image among the answers that state a verdict other than "Cannot tell.": one answer
    of each group, and none that is a word or a number.
  - `above_guessing`: p-value of the exact binomial test that `decided` is no better than always giving the most
    frequent label of all records. A small one finds a model that is right without seeing. None where there is no such
    answer, or nothing to guess.
  - `same_verdict`: share of the verdicts that do not change, among the records with a verdict on both sides.
  """
  read = READINGS[reading]
  with_image, without = answered_by_both(seen.predictions, unseen.predictions)
  seen_right, unseen_right = outcomes(with_image, read), outcomes(without, read)
  said = [(read(p), read(q)) for p, q in zip(with_image, without, strict=True)]
  alone = [q for q in {q.group or q.id: q for q in without[::-1]}.values() if not q.is_short]
  decided = [read(q) == q.label for q in alone if read(q) not in (-1, CANNOT_TELL)]
  guess = guessing(alone)
  return {
    "name": seen.name,
    "control": unseen.control,
    "reading": reading,
    "with_image": rate([*seen_right.values()]),
    "without_image": rate([*unseen_right.values()]),
    "paired": dataclasses.asdict(paired_test(unseen_right, seen_right)),
    "decided": rate(decided) if decided else None,
    "guess": guess,
    "above_guessing": _above(decided, guess) if decided and guess else None,
    "same_verdict": share([a == b for a, b in said if a >= 0 <= b]),
    "no_verdict": share([b < 0 for _, b in said]),
    "cannot_tell": share([b == CANNOT_TELL for _, b in said]),
  }


def _above(decided: Sequence[bool], guess: float) -> float:
  test = stats.binomtest(sum(decided), len(decided), guess, alternative="greater")
  return float(test.pvalue)


def reasoning_row(direct: FinishedRun, reasoned: FinishedRun) -> Row:
  """Returns reasoned answers less direct ones; a negative difference means that reasoning lowers the accuracy."""
  tokens = paired_bootstrap(_generated(direct), _generated(reasoned))
  return {
    "direct": direct.name,
    "reasoned": reasoned.name,
    "same_policy": direct.setting("checkpoint") == reasoned.setting("checkpoint"),
    "direct_accuracy": rate([*outcomes(direct.predictions).values()]),
    "reasoned_accuracy": rate([*outcomes(reasoned.predictions).values()]),
    "paired": dataclasses.asdict(mcnemar(direct.predictions, reasoned.predictions)),
    "tokens": dataclasses.asdict(tokens),
  }


def template_row(group: Sequence[FinishedRun], reading: str) -> Row:
  """Returns the spread of accuracy over templates of the same question, on the records that every run answered.

  - `p_value`: Cochran's Q test that all templates are equally accurate. A test of the best against the worst would find
    differences by their choice.
  - `always_right`: share of the records that are answered rightly under every template.
  """
  read = READINGS[reading]
  answered = set.intersection(*({p.id for p in run.predictions} for run in group))
  by_run = [outcomes([p for p in run.predictions if p.id in answered], read) for run in group]
  common = [*by_run[0]]
  rates = [rate([found[id] for id in common]) for found in by_run]
  by_accuracy = sorted(rates, key=lambda r: r["accuracy"])
  return {
    "names": [run.name for run in group],
    "reading": reading,
    "rates": rates,
    "n": len(common),
    "mean": float(np.mean([r["accuracy"] for r in rates])),
    "min": by_accuracy[0],
    "max": by_accuracy[-1],
    "p_value": cochran_q(by_run),
    "always_right": share([all(found[id] for found in by_run) for id in common]),
  }


def pair_row(run: FinishedRun, reference: FinishedRun, what: str) -> Row:
  """Returns the contrastive pairs with both answers right, and their difference from the reference."""
  found, known = (both_right(r.predictions, PAIRS[what]) for r in (run, reference))
  row: Row = {"name": run.name, "differ_in": what, "both_right": None}
  if found:
    row["both_right"] = rate([*found.values()])
  if run is not reference and found.keys() & known.keys():
    row["paired"] = dataclasses.asdict(paired_test(known, found))
  return row


def box_row(run: FinishedRun, grammar: Grammar) -> Row:
  """Returns the scores of the boxes that its answers name."""
  return {"name": run.name, **box_scores(run.predictions, grammar)}


def stratum_rows(runs: Sequence[FinishedRun]) -> list[Row]:
  """Returns the strict accuracy of every run in each relation and in each value of the records' strata."""
  by_run = {run.name: _by_place(run.predictions) for run in runs}
  places = {place: None for found in by_run.values() for place in found}
  return [
    {
      "stratum": name,
      "value": value,
      "rates": {run: found.get((name, value)) for run, found in by_run.items()},
    }
    for name, value in places
  ]


def _by_place(predictions: Sequence[Prediction]) -> dict[tuple[str, str], Rate]:
  """Returns (stratum, value) → accuracy; the relation is the first stratum."""
  relations = rates_by(predictions, lambda p: p.relations)
  strata = extracted_scores(predictions)["by_stratum"]
  return {
    **{("relation", value): found for value, found in relations.items()},
    **{
      (name, value): both["strict"]
      for name, by_value in strata.items()
      for value, both in by_value.items()
    },
  }
