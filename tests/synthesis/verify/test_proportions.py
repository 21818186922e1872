"""Shares, multiples and angles by hand: a bed of 800 × 400 with a cat of 200 × 100 inside, a lamp outside."""

import pytest

from spatial_vlm.synthesis.verify.proportions import check_proportions

BOXES = {"bed": (100, 500, 900, 900), "cat": (300, 600, 500, 700), "lamp": (950, 0, 1000, 200)}


@pytest.mark.parametrize(
  "clause",
  [
    "the bed fills 32% of the image",
    "the bed takes up about a third of the picture",
    "the bed spans 80% of the image's width",
    "the cat covers 6.25% of the bed",
    "the cat's width is a quarter of the bed's width",
    "all of it, 100% of the cat, lies on the bed",
    "the bed is 4 times as wide as the cat",
    "the bed is about 16 times as large as the cat",
    "the cat is 2 times as wide as it is high",
    "perpendicular, at 90 degrees",
    "parallel, at 0 degrees",
    "they face in opposite directions, at 180°",
    "at about 80 degrees, so nearly perpendicular",
    "turned by 30 degrees and therefore not perpendicular",
    "in the left half of the image",
    "half of the blanket is red",
    "at half past three",
  ],
)
def test_true_proportions_pass_and_leave_no_number(clause):
  rest, errors = check_proportions(clause, BOXES)
  assert not errors and not any(char.isdigit() for char in rest)


@pytest.mark.parametrize(
  ("clause", "error"),
  [
    ("the bed fills 52% of the image", "52% matches no share of image"),
    ("the bed takes up about two thirds of the picture", "two thirds matches no share of image"),
    ("the cat covers 40% of the bed", "40% matches no share of bed"),
    ("60% of the cat lies on the bed", "60% matches no share of cat"),
    ("the bed is 6 times as wide as the cat", "6 times as wide as the cat matches no ratio"),
    ("perpendicular, at 45 degrees", "45 degrees does not agree with"),
    ("parallel, at 90°", "90° does not agree with"),
    ("turned by 400 degrees", "400 degrees does not agree with"),
  ],
)
def test_wrong_proportions_are_named(clause, error):
  assert error in check_proportions(clause, BOXES)[1][0]
