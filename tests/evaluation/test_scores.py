import itertools
import json
import math

import numpy as np
import pytest
from scipy import optimize, stats

from spatial_vlm.evaluation import boxes, predictions, statistics
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import score_statements
from spatial_vlm.evaluation.statistics import mcnemar, paired_lower_bound


def test_hand_computed_case(predict):
  """4 true, 3 false: hits 2, misses 1, unparsed 1; one false alarm, one right no, one unparsed."""
  verdicts = [(1, 1), (1, 1), (1, 0), (1, -1), (0, 1), (0, 0), (0, -1)]
  got = score_statements(
    [predict(i, label, verdict) for i, (label, verdict) in enumerate(verdicts)]
  )
  assert (got["n"], got["right"]) == (7, 3)
  assert got["accuracy"] == pytest.approx(3 / 7)
  assert got["balanced_accuracy"] == pytest.approx((2 / 4 + 1 / 3) / 2)
  assert got["yes_rate"] == pytest.approx(3 / 7)
  assert got["parse_rate"] == pytest.approx(5 / 7)
  assert got["f1"] == pytest.approx(2 * 2 / (3 + 4))  # precision 2/3, recall 2/4
  assert got["total_tokens_mean"] == 40


@pytest.mark.parametrize(
  "right, n, low, high",
  [
    (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
  ],
)
def test_wilson_interval_of_the_literature(right, n, low, high):
  got = statistics.rate([True] * right + [False] * (n - right))
  assert (got["ci_low"], got["ci_high"]) == (
    pytest.approx(low, abs=5e-5),
    pytest.approx(high, abs=5e-5),
  )


def test_nothing_to_score_is_an_error():
  with pytest.raises(ValueError, match="no predictions"):
    score_statements([])


def test_repeated_id_is_an_error(predict):
  with pytest.raises(ValueError, match=r"1 ids occur twice \(first: 3\)"):
    score_statements([predict(3, 1, 1), predict(3, 1, 1), predict(4, 1, 1)])


def test_nothing_parses(predict):
  got = score_statements([predict(i, i % 2, -1) for i in range(10)])
  assert got["accuracy"] == got["parse_rate"] == got["yes_rate"] == got["f1"] == 0
  assert got["balanced_accuracy"] == 0
  assert got["ci_low"] == 0 and got["ci_high"] == pytest.approx(0.2775, abs=1e-4)
  assert got["box_iou"] is got["binding_errors"] is got["correct_with_wrong_boxes"] is None


def test_single_class_has_no_balanced_accuracy(predict):
  got = score_statements([predict(0, 0, 0), predict(1, 0, 0)])
  assert got["balanced_accuracy"] is None
  assert got["f1"] is None  # nothing true, nothing called true
  assert got["pairs"] is None
  assert score_statements([predict(0, 0, 1)])["f1"] == 0


def test_verdict_by_log_probability_keeps_its_own_parse_rate(predict):
  """A verdict without a parsable text counts as an answer; the text alone decides the parse rate."""
  got = score_statements([predict(0, 1, 1, text="red red red"), predict(1, 1, 1, text="Yes.")])
  assert got["accuracy"] == 1 and got["parse_rate"] == 0.5


def test_answer_cut_off_at_its_verdict_does_not_parse(predict):
  got = score_statements([predict(0, 1, -1, text="Yes.", truncated=True), predict(1, 1, 1)])
  assert got["parse_rate"] == got["truncated_rate"] == 0.5


def test_empty_text_is_an_answer_that_does_not_parse_unless_nothing_was_generated(predict):
  assert score_statements([predict(0, 1, -1, text="", generated_tokens=1)])["parse_rate"] == 0
  assert score_statements([predict(0, 1, 1, text="", generated_tokens=0)])["parse_rate"] is None
  assert score_statements([predict(0, 1, 1, text="red", generated_tokens=0)])["parse_rate"] == 0


def test_groups(predict):
  predictions = [
    predict(0, 1, 1),
    predict(1, 1, 0),
    predict(2, 0, 0, relation="near"),
    predict(3, 0, 0, relation="of a kind never seen"),
  ]
  got = score_statements(predictions, {"left of": "Projective", "near": "Proximity"})
  assert {name: (r["right"], r["n"]) for name, r in got["by_relation"].items()} == {
    "left of": (1, 2),
    "near": (1, 1),
    "of a kind never seen": (1, 1),
  }
  assert {name: (r["right"], r["n"]) for name, r in got["by_category"].items()} == {
    "Projective": (1, 2),
    "Proximity": (1, 1),
    "Unallocated": (1, 1),
  }


def test_contrastive_pairs_by_caption_in_the_order_of_ids(predict):
  """Ids 2k, 2k+1 are pairs also when a caption comes up in several of them and the file is out of order."""
  a, b, c = "The cat is near the mug.", "The mug is near the cat.", "The cat is on the mug."
  predictions = [
    predict(0, 1, 1, caption=a),
    predict(1, 0, 0, caption=a),  # both right
    predict(2, 0, 1, caption=a),
    predict(3, 1, 1, caption=a),  # one wrong
    predict(4, 1, 1, caption=b),
    predict(5, 0, -1, caption=b),  # one unparsed
    predict(6, 1, 1, caption=c),
    predict(7, 1, 1, caption=c),  # never false: not a pair
    predict(8, 1, 0, caption=a),  # a third true one: no partner
  ]
  for order in (predictions, predictions[::-1]):
    pairs = score_statements(order)["pairs"]
    assert (pairs["right"], pairs["n"]) == (1, 3)


def test_seconds_of_those_timed_alone(predict):
  seconds = [*np.linspace(0.0, 1.0, 21), None, None]
  got = score_statements([predict(i, 1, 1, seconds=s) for i, s in enumerate(seconds)])
  assert got["seconds_n"] == 21
  assert (got["seconds_mean"], got["seconds_p50"], got["seconds_p95"]) == pytest.approx(
    (0.5, 0.5, 0.95)
  )
  assert score_statements([predict(0, 1, 1)])["seconds_p95"] is None


def test_scores_are_strict_json(predict, chain):
  predictions = [predict(i, i % 2, 1, chain(1, {"cat": (0, 0, 20, 20)})) for i in range(4)]
  got = score_statements(predictions)
  assert json.loads(json.dumps(got, allow_nan=False)) == got


# Boxes


def test_box_figures_by_hand(predict, chain):
  cat, mug = (100, 100, 300, 300), (600, 600, 800, 800)
  predictions = [
    predict(0, 1, 1, chain(1, {"cat": cat, "mug": mug})),  # IoU 1, 1
    predict(
      1, 1, 1, chain(1, {"cat": (200, 100, 400, 300), "mug": mug})
    ),  # 1/3, 1: right, wrong box
    predict(2, 1, 1, chain(1, {"cat": mug, "mug": cat})),  # swapped: 0, 0, two binding errors
    predict(3, 1, 0, chain(0, {"cat": cat})),  # missing: 1, 0, and the verdict is wrong
    predict(4, 1, -1, "Summary: cut off"),  # does not parse: 0, 0
  ]
  got = score_statements(predictions)
  assert got["box_n"] == 5
  assert got["box_iou"] == pytest.approx((1 + 2 / 3 + 0 + 1 / 2 + 0) / 5)
  assert got["correct_with_wrong_boxes"]["share"] == pytest.approx(2 / 3)
  assert got["correct_with_wrong_boxes"]["n"] == 3  # the right answers
  assert got["correct_with_swapped_boxes"]["share"] == pytest.approx(1 / 3)
  assert got["binding_errors"]["share"] == pytest.approx(2 / 7)
  low, high = statistics.wilson(2, 7)
  assert (got["binding_errors"]["ci_low"], got["binding_errors"]["ci_high"]) == (low, high)


def test_forms_without_boxes_have_no_box_figures(predict, chain):
  short = "Applying 'behavior_left_of': x=1 < x=2\nConclusion: Yes."
  direct = [predict(i, 1, 1) for i in range(3)]
  fallback = [predict(9, 1, 1, chain(1, {"cat": (0, 0, 20, 20)}))]
  for answered in (direct, [predict(i, 1, 1, short) for i in range(3)] + fallback):
    got = score_statements(answered)
    assert got["box_n"] == 0
    assert got["box_iou"] is got["correct_with_wrong_boxes"] is got["binding_errors"] is None


def test_chain_without_boxes_counts_as_missing(predict, chain):
  got = score_statements([predict(0, 1, 1, chain(1, {}))])
  assert (got["box_iou"], got["binding_errors"]) == (0, None)
  assert got["correct_with_wrong_boxes"]["count"] == 1
  assert got["correct_with_swapped_boxes"]["count"] == 0  # a missing box lies nowhere


def test_examples_without_true_boxes_are_not_judged(predict, chain):
  text = chain(1, {"cat": (0, 0, 20, 20)})
  assert score_statements([predict(0, 1, 1, text, boxes_true={})])["box_iou"] is None
  both = [
    predict(0, 1, 1, text, boxes_true={}),
    predict(1, 1, 1, text, boxes_true={"cat": (0, 0, 20, 20)}),
  ]
  assert (score_statements(both)["box_n"], score_statements(both)["box_iou"]) == (1, 1)


def test_distractors_do_not_enter_the_iou_but_can_attract_a_box(predict, chain):
  true = {"cat": (0, 0, 100, 100), "mug": (900, 900, 1000, 1000), "hat": (400, 400, 500, 500)}
  boxes = {"cat": true["cat"], "mug": (480, 480, 560, 560), "dog": true["hat"]}
  got = score_statements([predict(0, 1, 1, chain(1, boxes), boxes_true=true)])
  assert got["box_iou"] == 0.5
  assert (
    got["binding_errors"]["share"] == 0.5
  )  # the mug's box is the hat's; a dog is not in the image


@pytest.mark.parametrize(
  "caption, names, expected",
  [
    ("The red mug is left of the mug.", ["mug", "red mug"], ["red mug", "mug"]),
    ("The mug is left of the red mug.", ["mug", "red mug"], ["mug", "red mug"]),
    (
      "The cat is in front of the caterpillar.",
      ["cat", "caterpillar", "hat"],
      ["cat", "caterpillar"],
    ),
    ("The caterpillar is under the hat.", ["cat", "hat"], ["hat"]),
    ("Cat (old) is above the T-shirt.", ["t-shirt", "cat (old)"], ["cat (old)", "t-shirt"]),
  ],
)
def test_named_objects(predict, caption, names, expected):
  p = predict(0, 1, 1, caption=caption, boxes_true={name: (0, 0, 20, 20) for name in names})
  assert boxes.named_objects(p) == expected


def test_iou_equals_counting_pixels():
  rng = np.random.default_rng(0)
  for _ in range(50):
    (ax, ay, bx, by), sizes = rng.integers(0, 20, 4), rng.integers(1, 15, 4)
    a, b = (ax, ay, ax + sizes[0], ay + sizes[1]), (bx, by, bx + sizes[2], by + sizes[3])
    grids = np.zeros((2, 40, 40), bool)
    for grid, (x1, y1, x2, y2) in zip(grids, (a, b), strict=True):
      grid[y1:y2, x1:x2] = True
    assert boxes.iou(a, b) == pytest.approx(
      (grids[0] & grids[1]).sum() / (grids[0] | grids[1]).sum()
    )


def test_nearest_object_by_overlap_then_by_centre():
  objects = {"inner": (400, 400, 500, 500), "outer": (0, 0, 1000, 1000)}
  assert boxes.nearest_object((420, 400, 500, 500), objects) == "inner"
  assert boxes.nearest_object((200, 200, 900, 900), objects) == "outer"
  apart = {"a": (0, 0, 20, 20), "b": (900, 900, 1000, 1000)}
  assert boxes.nearest_object((700, 700, 720, 720), apart) == "b"


# Storage


def test_prediction_survives_its_line(predict):
  text = 'Summary: \u2028 "x" \\n é 🐈\nCaption: \x1b[31m\nConclusion: Yes.'
  p = predict(7, 1, -1, text, retrieved="behavior_left_of", seconds=0.125, truncated=True)
  line = p.to_json()
  assert len(line.splitlines()) == 1
  assert Prediction.from_json(line) == p
  assert Prediction.from_json(line).boxes_true["cat"] == (100, 100, 300, 300)


def test_torn_or_foreign_line_is_an_error(predict):
  line = predict(7, 1, 1).to_json()
  fields = json.loads(line)
  foreign = [
    "",
    "[]",
    "3",
    json.dumps({k: v for k, v in fields.items() if k != "label"}),
    json.dumps(fields | {"colour": "red"}),
    json.dumps(fields | {"boxes_true": {"cat": [1, 2, 3]}}),
    json.dumps(fields | {"boxes_true": None}),
  ]
  for bad in [*(line[:cut] for cut in range(len(line))), *foreign]:
    with pytest.raises(ValueError, match="not a stored prediction"):
      Prediction.from_json(bad)


# Paired tests


def paired_runs(predict, both, only_a, only_b, neither):
  outcomes = [(1, 1)] * both + [(1, 0)] * only_a + [(0, 1)] * only_b + [(0, 0)] * neither
  a = [predict(i, 1, right) for i, (right, _) in enumerate(outcomes)]
  b = [predict(i, 1, right) for i, (_, right) in enumerate(outcomes)]
  return a, b[::-1]  # paired by id, not by place


@pytest.mark.parametrize(
  "cells, p, low, high",
  [
    # Fagerland, Lydersen, Laake 2013 and 2014 (airway hyper-responsiveness; complete response).
    ((1, 7, 1, 12), 0.0703, -0.517, -0.026),
    ((59, 16, 6, 80), 0.0525, -0.1240, -0.0054),
  ],
)
def test_mcnemar_of_the_literature(predict, cells, p, low, high):
  got = mcnemar(*paired_runs(predict, *cells))
  assert (got.n, got.only_a, got.only_b) == (sum(cells), cells[1], cells[2])
  assert got.p_value == pytest.approx(p, abs=5e-5)
  assert got.difference == pytest.approx((cells[2] - cells[1]) / sum(cells))
  tolerance = 0.5 * 10 ** -(len(str(abs(low))) - 2)
  assert (got.ci_low, got.ci_high) == (
    pytest.approx(low, abs=tolerance),
    pytest.approx(high, abs=tolerance),
  )


def test_swapping_the_methods_negates_the_result(predict):
  a, b = paired_runs(predict, 50, 13, 4, 20)
  ab, ba = mcnemar(a, b), mcnemar(b, a)
  assert ab.p_value == ba.p_value
  assert (ab.only_a, ab.only_b) == (ba.only_b, ba.only_a)
  assert (ab.difference, ab.ci_low, ab.ci_high) == pytest.approx(
    (-ba.difference, -ba.ci_high, -ba.ci_low)
  )


def test_symmetric_and_equal_methods(predict):
  same = mcnemar(*paired_runs(predict, 5, 8, 8, 5))
  assert same.p_value == 1 and same.difference == 0
  assert same.ci_low == pytest.approx(-same.ci_high)
  twin = mcnemar(*paired_runs(predict, 60, 0, 0, 40))
  assert (twin.p_value, twin.difference) == (1, 0)
  z = stats.norm.ppf(0.95)
  assert twin.lower_bound == pytest.approx(
    -(z**2) / (100 + z**2)
  )  # Tango's bound without discordance


def test_all_discordant_one_way(predict):
  got = mcnemar(*paired_runs(predict, 0, 6, 0, 0))
  assert got.p_value == pytest.approx(2 / 2**6)
  assert got.ci_low == got.lower_bound == got.difference == -1
  assert -1 < got.ci_high < 0


def test_non_inferiority_bound_is_one_sided(predict):
  got = mcnemar(*paired_runs(predict, 2900, 110, 90, 900))
  wald = got.difference - 1.6449 * math.sqrt(200 - 400 / 4000) / 4000
  assert got.lower_bound == pytest.approx(wald, abs=1e-4)  # n is large: within 0.01 points
  assert got.ci_low < got.lower_bound < got.difference


@pytest.mark.parametrize("gains, losses, n", [(3, 1, 32), (0, 4, 50), (40, 20, 160), (7, 0, 9)])
def test_bound_inverts_the_score_test(gains, losses, n):
  """At the bound the score statistic, with the nuisance parameter maximised numerically, equals z."""
  bound = paired_lower_bound(gains, losses, n, 0.975)

  def negative_log_likelihood(q):
    cells = (gains, q + bound), (losses, q), (n - gains - losses, 1 - 2 * q - bound)
    return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

  limits = (max(0.0, -bound), (1 - bound) / 2)
  q = optimize.minimize_scalar(
    negative_log_likelihood, bounds=limits, method="bounded", options={"xatol": 1e-12}
  ).x
  statistic = (gains - losses - n * bound) / math.sqrt(n * (2 * q + bound - bound**2))
  assert statistic == pytest.approx(stats.norm.ppf(0.975), abs=1e-4)


def test_a_paired_test_is_over_what_both_sides_answered(predict):
  a = [predict(i, 1, 1) for i in range(4)]
  b = [predict(i, i % 2, 1) for i in range(1, 6)]
  paired = mcnemar(a, b)
  assert (paired.n, paired.only_a, paired.only_b) == (3, 1, 0)
  with pytest.raises(ValueError, match="4 and 2 given, none on both sides"):
    mcnemar(a, b[3:])
  with pytest.raises(ValueError, match="0 and 0 given"):
    mcnemar([], [])


# Majority


def test_majority_label_of_each_relation(example):
  train = [
    ("near", 1),
    ("near", 0),
    ("near", 0),
    ("left of", 1),
    ("left of", 0),
    *[("far from", 0)] * 3,
  ]
  relations = ["near", "left of", "far from", "never trained"]
  got = predictions.majority_predictions(
    train, [example(i, 1, name) for i, name in enumerate(relations)]
  )
  assert [p.verdict for p in got] == [0, 1, 0, 0]  # a tie is true; unknown: 6 of 8 false
  assert [p.id for p in got] == [0, 1, 2, 3]
  figures = score_statements(got)
  assert figures["generated_tokens_mean"] == figures["total_tokens_mean"] == 0
  assert figures["parse_rate"] is figures["box_iou"] is figures["seconds_mean"] is None


def test_every_verdict_against_every_label(predict):
  for label, verdict in itertools.product((0, 1), (-1, 0, 1)):
    assert predict(0, label, verdict).right == (label == verdict)
