"""The aims of the method, judged on handmade answers."""

import re

import pytest

from spatial_vlm.demo import methods
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import score_statements


def predict(id, label, verdict, **fields):
  defaults = dict(
    caption="The cat is left of the mug.", relation="left of", boxes_true={}, text="Yes."
  )
  tokens = dict(generated_tokens=10, prompt_tokens=30, truncated=False)
  return Prediction(id=id, label=label, verdict=verdict, **defaults | tokens | fields)


def answered(right, n=1000, tokens=45):
  """N answers, the first `right` of them right."""
  return [
    predict(i, i % 2, i % 2 if i < right else 1 - i % 2, generated_tokens=tokens) for i in range(n)
  ]


def scored(runs):
  return {method: score_statements(predictions) for method, predictions in runs.items()}


def test_method_names_are_those_of_the_result_table():
  assert methods.METHODS == (
    "majority",
    "tiny base, zero-shot",
    "SFT, direct answer",
    "SFT, chain of thought",
    "DAPO, chain of thought",
    "DAPO + reuse",
  )


@pytest.mark.parametrize("gain, met", [(29, False), (30, True), (31, True)])
def test_dapo_aim_is_three_points(gain, met):
  runs = {methods.SFT_CHAIN: answered(700), methods.DAPO_CHAIN: answered(700 + gain)}
  (aim,) = methods.judge_aims(runs, scored(runs))
  assert aim.met is met
  assert (
    f"DAPO answers {70 + gain / 10:.1f} % rightly, SFT 70.0 %: +{gain / 10:.1f} points"
    in aim.figures
  )


@pytest.mark.parametrize(
  "loss, tokens, met, said",
  [
    (5, 13, True, r"−0\.5 points.*\(met\).*13\.0 tokens in place of 45\.0, 3\.46 times.*\(met\)"),
    (5, 14, False, r"\(met\).*3\.21 times fewer, where 3\.4 is asked \(missed\)"),
    (15, 13, False, r"above −2\.\d points, where −2\.0 is allowed \(missed\).*\(met\)"),
    (-10, 13, True, r"\+1\.0 points.*\(met\).*\(met\)"),
  ],
)
def test_reuse_aim_needs_both_the_bound_and_the_ratio(loss, tokens, met, said):
  """15 of 1,000 lost is less than 2 points, but its one-sided bound is not."""
  runs = {
    methods.DAPO_CHAIN: answered(740),
    methods.DAPO_REUSE: answered(740 - loss, tokens=tokens),
  }
  (aim,) = methods.judge_aims(runs, scored(runs))
  assert aim.met is met
  assert re.search(said, aim.figures), aim.figures


def test_aims_without_their_rows():
  runs = {methods.SFT_CHAIN: answered(5, 10)}
  assert methods.judge_aims(runs, scored(runs)) == []


def test_every_row_has_its_predictions_and_every_pair_its_rows():
  assert [*methods.FOLDERS] == [*methods.METHODS, methods.REUSE_FULL_CHAIN]
  assert {name for pair in methods.PAIRS for name in pair} == {*methods.FOLDERS}
