"""What several finished evaluations show together, by hand."""

import json

import pytest

from spatial_vlm.evaluation.predictions import CANNOT_TELL
from spatial_vlm.evaluation.runs import FinishedRun
from spatial_vlm.evaluation.runs_comparison import compare_runs, guessing
from spatial_vlm.tasks import find_worded_task

SETTINGS = {"method": "chain", "checkpoint": "p", "task": "vsr", "control": ""}


@pytest.fixture
def run_of(predict):
  """Makes a run of n answers, the first `right` of them right; true and false statements alternate."""

  def make(name, right, n=100, predictions=None, tokens=40, **settings):
    if predictions is None:
      predictions = [
        predict(
          i,
          i % 2,
          verdict := i % 2 if i < right else 1 - i % 2,
          extracted=verdict,
          generated_tokens=tokens,
        )
        for i in range(n)
      ]
    return FinishedRun(name, {**SETTINGS, **settings}, predictions)

  return make


def test_a_model_that_sees_falls_to_guessing_without_the_image(run_of):
  found = compare_runs([run_of("seen", 80), run_of("b", 50, control="blank")], True)
  strict, extracted = found["controls"]
  assert (strict["reading"], extracted["reading"]) == ("strict", "extracted")
  assert strict["control"] == "blank"
  assert strict["with_image"]["accuracy"] == 0.8 and strict["without_image"]["accuracy"] == 0.5
  assert strict["paired"]["difference"] == pytest.approx(0.3)
  assert strict["paired"]["ci_low"] > 0.2 and strict["paired"]["p_value"] < 1e-6
  assert strict["above_guessing"] > 0.5 and found["guess"] == 0.5
  assert strict["same_verdict"]["count"] == 70


def test_a_model_that_is_right_without_seeing_is_found_out(run_of):
  found = compare_runs([run_of("seen", 80), run_of("t", 78, control="text_only")], True)
  strict = found["controls"][0]
  assert strict["above_guessing"] < 1e-6 and strict["paired"]["p_value"] == pytest.approx(0.5)
  assert strict["paired"]["ci_low"] < 0.05


def test_both_readings_stand_side_by_side(run_of, predict):
  answers = [predict(i, 1, -1, text="**Yes**", extracted=1) for i in range(10)]
  row = compare_runs([run_of("a", 0, predictions=answers)], True)["rows"][0]
  assert row["strict"]["accuracy"] == 0 and row["extracted"]["accuracy"] == 1
  assert row["parsed"]["share"] == 0


def test_cannot_tell_is_counted_and_never_right(run_of, predict):
  declines = [
    predict(i, i % 2, CANNOT_TELL, text="Cannot tell.", extracted=CANNOT_TELL) for i in range(100)
  ]
  blind = run_of("c", 0, predictions=declines, control="cannot_tell")
  found = compare_runs([run_of("seen", 80), blind], True)
  assert found["rows"][1]["cannot_tell"]["share"] == found["rows"][1]["parsed"]["share"] == 1
  assert found["controls"][0]["without_image"]["right"] == 0
  assert found["controls"][0]["cannot_tell"]["share"] == 1


def test_reasoning_that_lowers_the_accuracy_has_a_negative_difference(run_of):
  direct = run_of("direct", 84, method="direct", tokens=3, checkpoint="q")
  (row,) = compare_runs([direct, run_of("chain", 70, tokens=90)], True)["reasoning"]
  assert (row["direct"], row["reasoned"], row["same_policy"]) == ("direct", "chain", False)
  assert row["paired"]["difference"] == pytest.approx(-0.14) and row["paired"]["ci_high"] < 0
  assert row["tokens"]["difference"] == 87


def test_the_spread_over_templates(run_of):
  runs = [run_of(name, right, template=name) for name, right in (("a", 60), ("b", 70), ("c", 80))]
  strict, extracted = compare_runs(runs, True)["templates"]
  assert strict["mean"] == pytest.approx(0.7)
  assert (strict["min"]["right"], strict["max"]["right"]) == (60, 80)
  assert strict["names"] == ["a", "b", "c"] and [r["right"] for r in strict["rates"]] == [
    60,
    70,
    80,
  ]
  assert strict["always_right"]["count"] == 60 and strict["p_value"] < 1e-4
  assert extracted["n"] == 100


def test_pairs_and_boxes_belong_to_statements(run_of):
  runs = [run_of("a", 80), run_of("b", 40)]
  found = compare_runs(runs, True)
  assert [(r["name"], r["differ_in"]) for r in found["pairs"]] == [
    *(("a", "images"), ("b", "images"), ("a", "captions"), ("b", "captions"))
  ]
  first, second = found["pairs"][:2]
  assert first["both_right"]["right"] == 40 and "paired" not in first
  assert second["paired"]["difference"] == pytest.approx(-0.4)
  assert found["pairs"][2]["both_right"] is None  # the name of the image is unknown
  others = compare_runs(runs, False)
  assert others["pairs"] == others["boxes"] == []


def test_relations_and_strata_of_the_runs_with_the_image(run_of, predict):
  answers = [predict(i, 1, int(i < 3), strata={"votes": "ab"[i % 2]}) for i in range(4)]
  runs = [
    run_of("a", 0, predictions=answers),
    run_of("b", 2, n=4),
    run_of("c", 1, n=4, control="blank"),
  ]
  rows = compare_runs(runs, False)["strata"]
  found = {
    (row["stratum"], row["value"]): {n: r and (r["right"], r["n"]) for n, r in row["rates"].items()}
    for row in rows
  }
  assert found == {
    ("relation", "left of"): {"a": (3, 4), "b": (2, 4)},
    ("votes", "a"): {"a": (2, 2), "b": None},
    ("votes", "b"): {"a": (1, 2), "b": None},
  }


def test_the_comparison_is_strict_json(run_of):
  runs = [run_of("a", 80), run_of("b", 40, control="blank"), run_of("c", 9, template="x")]
  found = compare_runs(runs, True)
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_guessing_gives_the_most_frequent_label(predict):
  assert guessing([predict(i, int(i > 2), 1) for i in range(10)]) == 0.7
  assert guessing([predict(i, 0, 0) for i in range(3)]) is None
  words = [predict(i, 0, 0, is_short=True) for i in range(90)]
  assert guessing([*words, *(predict(i, int(i > 92), 1) for i in range(90, 100))]) == 0.7


def test_words_and_numbers_are_no_guesses(run_of, predict):
  """Their label 0 is the right answer: it is not that of the first option."""
  answers = [predict(i, 0, 0, extracted=0, is_short=True) for i in range(50)]
  answers += [predict(i, i % 2, 0, extracted=0) for i in range(50, 100)]
  runs = [run_of("seen", 0, predictions=answers), run_of("t", 0, predictions=answers, control="t")]
  row = compare_runs(runs, False)["controls"][0]
  assert (row["guess"], row["decided"]["n"], row["decided"]["right"]) == (0.5, 50, 25)


def test_two_answers_without_a_verdict_do_not_agree(run_of, predict):
  found = [
    run_of("a", 0, predictions=[predict(i, 1, v, extracted=v) for i, v in enumerate(said)], **more)
    for said, more in (([1, -1, -1, 0], {}), ([1, -1, 0, 1], {"control": "blank"}))
  ]
  same = compare_runs(found, False)["controls"][0]["same_verdict"]
  assert (same["count"], same["n"]) == (1, 2)


def test_the_copies_of_a_question_are_one_case(run_of, predict):
  """Four copies of each of ten questions: one run misses a copy of each, the other none."""
  runs = [
    run_of(
      name,
      0,
      predictions=[
        predict(i, 1, int(i % 4 < least), extracted=1, group=f"q{i // 4}") for i in range(40)
      ],
      **more,
    )
    for name, least, more in (("a", 3, {}), ("b", 4, {}), ("c", 3, {"control": "blank"}))
  ]
  found = compare_runs(runs, False)
  groups = [row["groups"]["strict"]["right"] for row in found["rows"]]
  assert groups == [0, 10, 0] and found["rows"][0]["groups"]["extracted"]["n"] == 10
  assert [row["strict"]["right"] for row in found["rows"]] == [30, 40, 30]
  assert (found["rows"][1]["paired"]["n"], found["rows"][1]["paired"]["only_b"]) == (10, 10)
  control = next(row for row in found["controls"] if row["name"] == "b")
  assert control["with_image"]["n"] == control["decided"]["n"] == 10


def test_boxes_are_read_in_the_grammar_of_the_run(run_of, predict, chain):
  words = find_worded_task("vsr", "tri", "plain").grammar
  boxes = {"cat": (100, 100, 300, 300), "mug": (600, 600, 800, 800)}
  text = chain(1, boxes).replace("Yes.", "True.")
  run = run_of("a", 0, predictions=[predict(0, 1, 1, text=text)], template="tri")
  assert compare_runs([run], True)["boxes"][0]["box_n"] == 0
  assert compare_runs([run], True, lambda run: words)["boxes"][0]["box_iou"] == 1


def test_a_model_that_decides_rarely_and_then_rightly_is_found_out(run_of, predict):
  """Nine of ten answers state nothing: the accuracy is low, that of the verdicts is not."""
  rare = [
    predict(i, i % 2, i % 2 if i < 20 else -1, extracted=i % 2 if i < 20 else CANNOT_TELL)
    for i in range(200)
  ]
  found = compare_runs(
    [run_of("seen", 180, n=200), run_of("b", 0, predictions=rare, control="blank")], True
  )
  for row in found["controls"]:
    assert row["without_image"]["accuracy"] == 0.1
    assert (row["decided"]["right"], row["decided"]["n"]) == (20, 20)
    assert row["above_guessing"] < 1e-5


def test_without_a_verdict_there_is_nothing_to_test(run_of, predict):
  nothing = [predict(i, i % 2, -1, extracted=-1) for i in range(100)]
  runs = [run_of("seen", 80), run_of("b", 0, predictions=nothing, control="blank")]
  row = compare_runs(runs, True)["controls"][0]
  assert row["decided"] is None and row["above_guessing"] is None
