"""Numbers in a text and the objects that they belong to."""

import pytest

from spatial_vlm.data.measurements import compared, read_numbers

NAMES = ("cup", "red cup")


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("cup x=100", [("x", 100, "cup", True)]),
    ("Red Cup spans x=1 to x=2", [("x", 1, "Red Cup", True), ("x", 2, "Red Cup", False)]),
    ("red cup, seen here, x=1", [("x", 1, "red cup", False)]),
    ("the gap of cup and red cup is gap=40", [("gap", 40, "", False)]),
    ("cup x=1, red cup x=2", [("x", 1, "cup", True), ("x", 2, "red cup", True)]),
    ("the cup's centre is 200.5.", [("", 200.5, "cup", False)]),
    ("x=3 and 4", [("x", 3, "", False), ("", 4, "", False)]),
  ],
)
def test_numbers_belong_to_the_object_named_before_them(text, expected):
  found = [(n.key, n.value, n.owner, n.named) for n in read_numbers(text, NAMES)]
  assert found == expected


def test_a_word_before_the_key_belongs_to_the_number_unless_it_is_a_stop_word():
  """`red cup spans x=1` names its owner: only the number's own text follows the name."""
  text = "Red Cup spans x=1 to x=2"
  assert [(n.role, text[n.start : n.end]) for n in read_numbers(text, NAMES)] == [
    ("spans", "spans x=1"),
    ("", "x=2"),
  ]


def test_whole_numbers_are_ints():
  values = [n.value for n in read_numbers("x=3, y=4.0", NAMES)]
  assert list(map(type, values)) == [int, float]


def test_adjacent_numbers_with_a_sign_between_them_are_compared():
  text = "cup x=1, y=2 < red cup y=3; x=4 ≥ x=5"
  pairs = compared(list(read_numbers(text, NAMES)), text)
  assert [(a.value, sign, b.value) for a, sign, b in pairs] == [(2, "<", 3), (4, "≥", 5)]
