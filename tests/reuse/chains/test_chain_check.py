"""Checks of a chain's comparisons: numbers, owners, verdict."""

import pytest

from spatial_vlm import answers
from spatial_vlm.reuse.chains import chain_check
from spatial_vlm.reuse.chains.chain_check import read_chain, reading_report, sound_chain
from spatial_vlm.reuse.chains.solutions import Solution

BOXES = [("cat", (100, 100, 300, 200)), ("red mug", (600, 50, 680, 300)), ("shelf", (0, 0, 40, 40))]


def solution(reasoning, verdict=1, label=1, relation="left of", boxes=BOXES):
  text = answers.render_chain("s", answers.render_boxes(boxes), reasoning, verdict)
  return Solution(
    "train:1", f"The cat is {relation} the red mug.", relation, None, None, text, label
  )


@pytest.mark.parametrize(
  ("reasoning", "reason"),
  [
    ("x=200 < x=640, so it is.", ""),
    ("cat x=200 < red mug x=640, so it is.", ""),
    ("cat right edge x=300 < red mug left edge x=600, so it is.", ""),
    ("The cat is seen to the left.", chain_check.UNREADABLE),
    ("x=640 < x=200, so it is.", chain_check.FALSE),
    ("cat x=200 > red mug x=640, so it is.", chain_check.FALSE),
    ("red mug x=200 < cat x=640, so it is.", chain_check.WRONG_NUMBER),
    ("cat x=210 < red mug x=640, so it is.", chain_check.WRONG_NUMBER),
    ("cat left edge x=200 < red mug x=640, so it is.", chain_check.WRONG_NUMBER),
    ("The gap between them is gap=300 > 20, so it is.", ""),
    ("The gap=310 > 20, so it is.", chain_check.WRONG_NUMBER),
    ("cat x=200 > shelf x=20, so it is.", chain_check.OTHER_OBJECTS),
    ("cat y=150 < red mug y=175, so it is.", chain_check.UNDECIDED),
    # One false comparison spoils the chain, whatever the others say.
    ("cat y=150 > red mug y=175; x=200 < x=640, so it is.", chain_check.FALSE),
    # The last comparison that can decide counts.
    ("x=200 < x=640, so it is. Also cat y=150 < red mug y=175.", ""),
  ],
)
def test_comparisons_are_checked(reasoning, reason):
  reading = read_chain(solution(reasoning))
  assert (reading.reason, reading.comparison is None) == (reason, bool(reason))
  assert (sound_chain(solution(reasoning)) is None) == (reason in chain_check.WRONG)


def test_the_comparison_agrees_with_the_verdict():
  right = "x=200 < x=640, so it is."
  assert read_chain(solution(right, 0, 1)).reason == chain_check.OTHER_VERDICT
  assert read_chain(solution(right, 0, 0)).reason == chain_check.CONTRADICTS
  assert read_chain(solution(right, 1, 1, "right of")).reason == chain_check.CONTRADICTS
  assert read_chain(solution(right, 0, 0, "right of")).reason == ""
  assert read_chain(solution(right, 1, 1, "not left of")).reason == chain_check.CONTRADICTS
  assert read_chain(solution(right, 0, 0, "not left of")).reason == ""


def test_an_object_without_a_box_has_its_measured_numbers():
  boxes = BOXES[:1]
  measured = "The red mug spans x=600 to x=680, centre x=640. "
  assert read_chain(solution(measured + "x=200 < x=640.", boxes=boxes)).reason == ""
  wrong = solution(measured + "x=200 < red mug x=650.", boxes=boxes)
  assert read_chain(wrong).reason == chain_check.WRONG_NUMBER
  nowhere = solution("cat x=200 < red mug x=650.", boxes=boxes)
  assert read_chain(nowhere).reason == chain_check.UNMEASURED


def test_numbers_measured_wrongly_are_not_those_of_the_box():
  moved = "cat spans x=120 to x=300, centre x=210; red mug centre x=640; x=210 < x=640, so it is."
  assert read_chain(solution(moved)).reason == chain_check.WRONG_NUMBER


def test_a_chain_about_other_objects_is_wrong():
  other = solution("x=200 < x=640, so it is.", boxes=[("cat", BOXES[0][1]), ("mug", BOXES[1][1])])
  assert read_chain(other).reason == chain_check.OTHER_STATEMENT and sound_chain(other) is None


def test_other_forms_are_no_chains():
  short = Solution("train:1", "The cat is left of the red mug.", "left of", None, None, "Yes.", 1)
  assert read_chain(short).reason == chain_check.NO_CHAIN and sound_chain(short) is None


def test_the_report_counts_reasons():
  texts = ("x=200 < x=640, so it is.", "x=200 > x=640.", "Seen.", "Seen so.")
  report = reading_report(map(solution, texts))
  assert report.read == 1 and report.left == {chain_check.UNREADABLE: 2, chain_check.FALSE: 1}
  assert str(report) == (
    "1 of 4 chains read, left: 2 no comparison that can be read; 1 comparison is false"
  )
  assert str(reading_report([])) == "0 of 0 chains read"
