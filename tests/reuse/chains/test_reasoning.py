"""Comparisons of a Reasoning step, with their numbers traced to the objects that they were measured on."""

import pytest

from spatial_vlm import answers
from spatial_vlm.reuse.chains.chain_objects import Objects, reasoning
from spatial_vlm.reuse.chains.comparison import BLANK
from spatial_vlm.reuse.chains.reasoning import measured, read_comparison

BOXES = [("cup", (100, 100, 300, 180)), ("red cup", (500, 200, 700, 500)), ("tv", (0, 0, 20, 20))]
NAMES = ("cup", "red cup")
LETTERS = {"cup": "X", "red cup": "Y"}
DOG = [("dog", (580, 600, 800, 930)), ("refrigerator", (250, 60, 540, 900))]
CENTRES = "dog x=690 > refrigerator x=395", "X centre x > Y centre x"
MEASURED = (
  "The refrigerator spans x=250 to x=540, with its centre at x=395; the dog spans x=580 to x=800, with its centre at"
  " x=690."
)


def parsed(text, boxes=BOXES):
  chain = answers.render_chain("s", answers.render_boxes(boxes), text, 1)
  return answers.STATEMENT.parse(chain)


def read(text, boxes=BOXES, names=NAMES):
  return read_comparison(parsed(text, boxes), names)


@pytest.mark.parametrize("before", ["", MEASURED])
@pytest.mark.parametrize(
  "wording",
  [
    "Since x=690 > x=395, the dog is at the right side of the refrigerator.",
    "x=690 > x=395, so the dog is at the right side of the refrigerator.",
    "The dog's centre x=690 is greater than the refrigerator's centre x=395.",
    "Given that x=690 > x=395, it is at the right side.",
    "Comparing the centres, x=690 > x=395.",
    "As x=690>x=395, it is at the right side.",
    "Because x = 690 is larger than x = 395, it is at the right side.",
    "x=690 > x=395, which means that it is at the right side.",
    "x=690 > x=395, therefore it is at the right side.",
    "The centre of the dog, x=690, lies to the right of the refrigerator's x=395.",
    "The centre of the dog, x=690, exceeds the refrigerator's x=395.",
    "x=395 < x=690, hence it is.",
    "The dog (centre x=690) is to the right of the refrigerator (centre x=395).",
    "The x-coordinate of the dog's centre (690) is greater than that of the refrigerator's centre (395).",
    "The refrigerator's centre at x=395 is left of the dog's centre at x=690.",
    "690 (dog) > 395 (refrigerator).",
    "With a centre x of 690, the dog is right of the refrigerator with a centre x of 395.",
    "If we compare the centres, 690 is more than 395.",
    "x=690 for the dog > x=395 for the refrigerator.",
  ],
)
def test_wordings_of_one_fact_are_one_comparison(wording, before):
  found = read(f"{before} {wording}", DOG, ("dog", "refrigerator"))
  letters = {"dog": "X", "refrigerator": "Y"}
  assert (found.with_names, found.masked(letters)) == CENTRES


@pytest.mark.parametrize(
  ("text", "with_names", "masked"),
  [
    (  # the plain case; "cup" is also the end of "red cup"
      "cup spans x=100 to x=300, centre x=200; red cup spans x=500 to x=700, centre x=600; x=200 < x=600, so yes.",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (  # names, key and role may stand there already
      "so cup centre x=200 < red cup centre x=600, hence yes.",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
    (  # the statement's subject stands on the left
      "red cup y=350 > cup y=140",
      "cup y=140 < red cup y=350",
      "X centre y < Y centre y",
    ),
    (
      "The cup's right edge x=300 is less than the red cup's left edge x=500.",
      "cup right edge x=300 < red cup left edge x=500",
      "X right edge x < Y left edge x",
    ),
    (  # downward is greater along y
      "The lower edge of the cup, y=180, lies above the lower edge of the red cup, y=500.",
      "cup bottom edge y=180 < red cup bottom edge y=500",
      "X bottom edge y < Y bottom edge y",
    ),
    (  # two comparisons of one object each
      "cup w=200 > h=80, red cup w=200 < h=300, so it is perpendicular to it.",
      "cup w=200 > h=80, red cup w=200 < h=300",
      "X w > h, Y w < h",
    ),
    (
      "The cup's height of 80 is smaller than its width of 200, and the red cup's width of 200 < its height of 300.",
      "cup w=200 > h=80, red cup w=200 < h=300",
      "X w > h, Y w < h",
    ),
    (
      "offsets x=400, y=210; d=400 > d=300, so it is far from it.",
      "cup to red cup d=400 > d=300",
      f"X to Y d > d={BLANK}",
    ),
    (  # of a length, "below" means less
      "The gap=200 is below 300.",
      "cup to red cup gap=200 < 300",
      f"X to Y gap < {BLANK}",
    ),
    (
      "0 < gap=200, so they do not meet.",
      "cup to red cup gap=200 > 0",
      f"X to Y gap > {BLANK}",
    ),
    (
      "The horizontal gap between the cup and the red cup of 200 units is greater than 0.",
      "cup to red cup horizontal gap=200 > 0",
      f"X to Y horizontal gap > {BLANK}",
    ),
    (  # nothing is compared: a measure of both objects in the last clause
      "apart x=0, y=0; gap=0, so it is touching it.",
      "cup to red cup gap=0",
      f"X to Y gap={BLANK}",
    ),
    (
      "cup w=200 > h=80, red cup w=200 < h=300; perpendicular, so it is not parallel to it.",
      "cup w=200 > h=80, red cup w=200 < h=300",
      "X w > h, Y w < h",
    ),
    (
      "There is a gap=200 between them. Therefore, they do not touch.",
      "cup to red cup gap=200",
      f"X to Y gap={BLANK}",
    ),
    (  # each edge of one object with the same edge of the other, in the order of edges
      "y=200 > y=100 and x=500 > x=100, x=300 < x=700",
      "cup left edge x=100 < red cup left edge x=500, cup right edge x=300 < red cup right edge x=700, "
      "cup top edge y=100 < red cup top edge y=200",
      "X left edge x < Y left edge x, X right edge x < Y right edge x, X top edge y < Y top edge y",
    ),
    (
      "The tv lies elsewhere. x=300 > x=500 or y=180 < y=500",
      "cup right edge x=300 > red cup left edge x=500 or cup bottom edge y=180 < red cup bottom edge y=500",
      "X right edge x > Y left edge x or X bottom edge y < Y bottom edge y",
    ),
    (
      "tv centre x=10 < cup centre x=200",
      "cup x=200 > tv x=10",
      "X centre x > another object centre x",
    ),
    (  # the last comparison counts, also before a remark
      "cup right edge x=300 < red cup left edge x=500. As x=200 < x=600, it is. Nothing hides it.",
      "cup x=200 < red cup x=600",
      "X centre x < Y centre x",
    ),
  ],
)
def test_comparisons(text, with_names, masked):
  comparison = read(text)
  assert (comparison.with_names, comparison.masked(LETTERS)) == (with_names, masked)


def test_a_range_within_a_range_compares_both_ends():
  boxes = [("cup", (205, 100, 790, 180)), ("red cup", (80, 90, 925, 200))]
  edges = "X left edge x > Y left edge x, X right edge x < Y right edge x"
  for text in (
    "The cup spans x=205 to x=790, which lies within the red cup's x=80 to x=925.",
    "The red cup's span from x=80 to x=925 contains the cup's x=205–790.",
  ):
    assert read(text, boxes).masked(LETTERS) == edges
  both = "The cup's x=205 to x=790 and y=100 to y=180 lies fully inside the red cup's x=80 to x=925 and y=90 to y=200."
  tall = ", X top edge y > Y top edge y, X bottom edge y < Y bottom edge y"
  assert read(both, boxes).masked(LETTERS) == edges + tall


@pytest.mark.parametrize(
  "text",
  [
    *(";", ".", ";;; .", "so", "x=", "= < >", "cup [1, 2, 3, 4]", "3 < 20", "x=1 < x=2"),
    "cup lies on the red cup, and nothing hides it.",
    "cup spans x=100 to x=300.",
    "The gap between them is gap=200. The red cup is held by a hand.",
    "If the cup were behind it, x=200 > x=600 would hold.",
    "The threshold d=400 is greater than 3.",
    "The gap=200 is greater than the cup's width w=200.",
    "For this, it would need x=200 > x=600.",
    "The cup's centre is at x=200 and the red cup's at x=600, so the latter is larger.",
    "The centres are about 400 units apart.",
  ],
)
def test_what_cannot_be_read_is_left(text):
  assert read(text) is None


@pytest.mark.parametrize(
  "text", ["x=600 < x=200", "red cup y=350 <= cup y=140", "cup w=200 = cup h=80"]
)
def test_a_false_comparison_is_read_and_does_not_hold(text):
  assert not read(text).holds


def test_two_objects_in_equal_roles_are_preferred():
  """200 is also the left edge of the red cup; the measured centres are compared."""
  boxes = [("cup", (100, 0, 300, 20)), ("red cup", (200, 0, 500, 20))]
  text = "red cup spans x=200 to x=500, centre x=350; cup spans x=100 to x=300, centre x=200; x=200 < x=350."
  assert read(text, boxes).with_names == "cup x=200 < red cup x=350"


def test_a_chain_of_signs_gives_two_inequalities():
  text = "cup left edge x=100 < tv left edge x=200 < cup right edge x=300"
  assert read(text, [("cup", (100, 0, 300, 20)), ("tv", (200, 0, 240, 20))]).with_names == (
    "cup left edge x=100 < tv left edge x=200, cup right edge x=300 > tv left edge x=200"
  )


def test_the_longer_of_two_names_is_read_and_a_last_word_names_its_object():
  boxes = [("cup", (0, 0, 40, 20)), ("cup holder", (50, 0, 70, 40))]
  assert read("x=20 < x=60", boxes, ()).with_names == "cup x=20 < cup holder x=60"
  boxes = [("cat", (0, 0, 40, 20)), ("dining table", (50, 0, 70, 40))]
  found = read("The table's centre x=60 > the cat's centre x=20", boxes, ("dining table", "cat"))
  assert found.with_names == "dining table x=60 > cat x=20"


def test_objects_without_a_box_are_known_by_their_measurements():
  text = "mug centre x=20; cup centre x=200; x=20 < x=200"
  assert read(text, names=["mug", "cup"]).with_names == "mug x=20 < cup x=200"


def test_measurements_have_owner_key_and_role():
  answer = parsed(
    "The cup spans x=100 to x=300 and y=100–180, with its centre at x=200, y=140; its width is w=200. We have x=600 for"
    " the red cup."
  )
  objects = Objects.of(answer, NAMES)
  found = [(q.owner, q.key, q.role, q.value) for q in measured(reasoning(answer, objects), objects)]
  assert found == [
    *(("cup", "x", "left edge", 100), ("cup", "x", "right edge", 300)),
    *(("cup", "y", "", 100), ("cup", "x", "centre", 200), ("cup", "y", "centre", 140)),
    *(("cup", "w", "", 200), ("red cup", "x", "", 600)),
  ]
