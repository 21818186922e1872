"""The last comparison of a Reasoning step, with its numbers traced to the objects that they were measured on."""

import pytest

from spatial_vlm import answers
from spatial_vlm.reuse.comparison import BLANK
from spatial_vlm.reuse.reasoning import read_comparison

BOXES = [("cup", (100, 100, 300, 300)), ("red cup", (500, 100, 700, 300)), ("tv", (0, 0, 20, 20))]
LETTERS = {"cup": "X", "red cup": "Y"}


def read(reasoning, boxes=BOXES, names=()):
  text = answers.render_chain("s", answers.render_boxes(boxes), reasoning, 1)
  return read_comparison(answers.STATEMENT.parse(text), names)


@pytest.mark.parametrize(
  ("reasoning", "with_names", "masked"),
  [
    (  # the plain case; "cup" is also the end of "red cup"
      "cup spans x=100 to x=300, centre x=200; red cup spans x=500 to x=700, centre x=600; x=200 < x=600, so yes.",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (  # 200 is the centre of one and an edge of the other: two objects, in the same role
      "red cup spans x=200 to x=500, centre x=350; cup spans x=100 to x=300, centre x=200; x=200 < x=350.",
      "cup x=200 < red cup x=350",
      "X centre x < Y centre x",
    ),
    (  # the same value on both axes: the key decides
      "cup centre x=200, y=600; red cup centre x=600, y=200; y=600 > y=200",
      "cup y=600 > red cup y=200",
      "X y > Y y",
    ),
    (  # names already present are not repeated
      "cup centre x=200; red cup centre x=600; so cup x=200 < red cup x=600, hence yes.",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (
      "cup centre x=200; red cup centre x=600; cup x=200 < x=600",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (  # two comparisons of one object each
      "cup w=300 > h=80, red cup w=80 < h=300, so it is perpendicular to it.",
      "cup w=300 > h=80, red cup w=80 < h=300",
      "X w > h, Y w < h",
    ),
    (  # a number of both objects is of neither; the threshold was never measured
      "cup centre x=20; red cup centre x=600; offsets x=580, y=0; d=580 > d=400, so it is far from it.",
      "cup to red cup d=580 > d=400",
      f"X to Y d={BLANK} > d={BLANK}",
    ),
    (
      "the gap between cup and red cup is gap=40; gap=40 < gap=200",
      "cup to red cup gap=40 < gap=200",
      f"X to Y gap={BLANK} < gap={BLANK}",
    ),
    (  # nothing is compared: the last clause, without its consequence
      "cup spans x=0 to x=9; red cup spans x=9 to x=20; apart x=0, y=0; gap=0, so it is touching it.",
      "cup to red cup gap=0",
      f"X to Y gap={BLANK}",
    ),
    (  # a later remark does not hide the comparison; plain numbers; another object
      "TV is at 20. The cup is 3 wide. 3 < 20. Hence yes.",
      "TV to cup 3 < 20",
      f"another object to X {BLANK} < {BLANK}",
    ),
    (
      "cup lies on the red cup, and nothing hides it.",
      "cup lies on the red cup, and nothing hides it",
      "X lies on the Y, and nothing hides it",
    ),
    (
      "cup left x=100, right x=300; red cup left x=20, right x=500; x=100 > x=20 and x=300 < x=500",
      "cup x=100 > red cup x=20 and cup x=300 < red cup x=500",
      "X left x > Y left x and X right x < Y right x",
    ),
    (  # two roles of one value: equal roles are compared
      "cup width x=200, centre x=200; red cup width x=90, centre x=600; x=200 < x=600",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (  # no two roles are equal: two objects rather than one
      "red cup left x=350, width x=300; cup left x=100, right x=300; x=300 < x=350",
      "cup x=300 < red cup x=350",
      "X right x < Y left x",
    ),
    (  # roles already present are not repeated
      "cup centre x=200; red cup centre x=600; cup centre x=200 < centre x=600",
      "cup centre x=200 < red cup centre x=600",
      "X centre x < Y centre x",
    ),
    ("cup spans x=0 to x=9.", "cup spans x=0 to x=9", "X spans x to x"),
  ],
)
def test_comparisons(reasoning, with_names, masked):
  comparison = read(reasoning)
  assert comparison.with_names == with_names
  assert comparison.masked(LETTERS) == masked
  assert comparison.holds


@pytest.mark.parametrize("text", ["x=600 < x=200", "x=9 >= x=10", "x=5 = x=6", "x=1 < x=2 < x=2"])
def test_a_false_comparison_is_rejected(text):
  assert not read(f"cup x=1; {text}, so yes.").holds


def test_a_chain_of_signs_names_each_number_once():
  reasoning = "cup left x=100; red cup centre x=200; tv right x=300; x=100 < x=200 < x=300"
  assert read(reasoning).with_names == "cup x=100 < red cup x=200 < tv x=300"


def test_a_chain_of_signs_keeps_to_its_first_reading():
  reasoning = "red cup left x=100, right x=200; tv left x=200, right x=300; cup left x=300; x=100 < x=200 < x=300"
  assert read(reasoning).with_names == "red cup x=100 < tv x=200 < cup x=300"


def test_the_longer_of_two_names_is_read():
  boxes = [("cup", (0, 0, 20, 20)), ("cup holder", (0, 0, 40, 40))]
  reasoning = "cup holder centre x=20; cup centre x=60; x=20 < x=60"
  assert read(reasoning, boxes).with_names == "cup holder x=20 < cup x=60"


def test_objects_without_a_box_are_found_by_name():
  reasoning = "mug centre x=20; cup centre x=60; x=20 < x=60"
  assert read(reasoning, names=["mug"]).with_names == "mug x=20 < cup x=60"


@pytest.mark.parametrize("reasoning", [";", ".", ";;; .", "so", "x=", "= < >", "cup [1, 2, 3, 4]"])
def test_any_text_can_be_read(reasoning):
  comparison = read(reasoning)
  assert comparison.with_names.strip()
  assert comparison.holds
