"""Strict and extracted figures: of all answers, of strata and of groups."""

from spatial_vlm.answers import FORMS, Grammar
from spatial_vlm.evaluation.extracted_scores import extracted_scores
from spatial_vlm.evaluation.scores import score_statements


def accuracies(both):
  return both["strict"]["accuracy"], both["extracted"]["accuracy"]


def test_a_base_that_answers_in_its_own_words_is_right_when_extracted(predict):
  found = [predict(i, 1, -1, "**Yes**", extracted=1) for i in range(3)]
  scores = score_statements([*found, predict(3, 0, 0, extracted=0)])
  assert (scores["accuracy"], scores["extracted"]["accuracy"]) == (0.25, 1.0)


def test_strata_have_both_figures(predict):
  votes = ["unanimous", "unanimous", "divided"]
  answers = [
    predict(i, 1, [1, -1, 0][i], extracted=[1, 1, 0][i], strata={"votes": votes[i]})
    for i in range(3)
  ]
  strata = extracted_scores(answers)["by_stratum"]["votes"]
  assert accuracies(strata["unanimous"]) == (0.5, 1.0) and strata["unanimous"]["strict"]["n"] == 2
  assert accuracies(strata["divided"]) == (0.0, 0.0)


def test_a_group_is_right_if_all_its_answers_are(predict):
  """Circular evaluation: three rotations, two of which are right; two, both right when extracted; one alone."""
  labels = [(1, 1), (1, 1), (0, 0), (1, 1), (-1, 1), (1, 1)]
  groups = ["3", "3", "3", "7", "7", ""]
  answers = [
    predict(i, 1, strict, extracted=read, group=group)
    for i, ((strict, read), group) in enumerate(zip(labels, groups, strict=True))
  ]
  both = extracted_scores(answers)["groups"]
  assert both["strict"]["n"] == 3 and accuracies(both) == (1 / 3, 2 / 3)
  assert extracted_scores([predict(0, 1, 1)])["groups"] is None


def test_a_template_has_its_own_parse_rate(predict, chain):
  grammar = Grammar(FORMS, {1: r"True\.?", 0: r"False\.?"})
  box = {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)}
  text = chain(1, box).replace("Yes.", "True.")
  scores = score_statements([predict(0, 1, 1, text)], grammar=grammar)
  assert scores["parse_rate"] == 1 and scores["box_iou"] == 1
  assert score_statements([predict(0, 1, 1, text)])["parse_rate"] == 0
