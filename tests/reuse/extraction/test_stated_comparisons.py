"""Comparisons of an instruction are checked on boxes; what cannot be read is left alone."""

import pytest

from spatial_vlm.reuse.extraction.stated_comparisons import false_comparison

BOXES = {"X": (100, 500, 300, 900), "Y": (400, 100, 900, 200)}  # X: centre 200, 700; Y: 650, 150


@pytest.mark.parametrize(
  ("comparison", "holds"),
  [
    *(("X centre x < Y centre x", True), ("X centre x > Y centre x", False)),
    *(("X centre y > Y centre y", True), ("X y < Y y", False), ("Y x > X x", True)),
    *(("X's right edge x < Y's left edge x", True), ("X's left edge > Y's right edge", False)),
    *(("X's top > Y's bottom edge", True), ("X's lower edge y < Y's upper edge y", False)),
    *(("X w < Y w", True), ("X h < Y h", False), ("X w < X h", True), ("X w > X h", False)),
    ("X's head x > Y centre x", True),  # no part of a box
    ("X's left edge y > Y's top y", True),  # a left edge has no y
    ("X to Y d > d", True),
  ],
)
def test_each_form_is_read(comparison, holds):
  assert false_comparison(f"yes when {comparison}, or so", BOXES) == ("" if holds else comparison)


def test_the_first_false_one_of_several_is_named():
  text = "yes when X x < Y x and X y < Y y and X w > Y w"
  assert false_comparison(text, BOXES) == "X y < Y y"
  assert false_comparison(text, {"X": BOXES["X"]}) == ""
