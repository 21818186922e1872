"""Values that boxes determine."""

import math

import pytest

from spatial_vlm.reuse.chains.box_values import box_quantities, pair_values

A, B = (0, 0, 100, 50), (130, 20, 190, 100)


def test_positions_and_sizes_of_one_box():
  found = {(q.role, q.key): q.value for q in box_quantities("cat", (10, 20, 40, 100))}
  assert found == {
    **{("centre", "x"): 25, ("left edge", "x"): 10, ("right edge", "x"): 40},
    **{("centre", "y"): 60, ("top edge", "y"): 20, ("bottom edge", "y"): 100},
    **{("", "w"): 30, ("", "h"): 80, ("", "area"): 2400},
  }


@pytest.mark.parametrize(
  ("key", "role", "values"),
  [
    ("gap", "", {30}),  # the boxes are apart: 0 along y is not their gap
    ("gap", "vertical", {0}),
    ("overlap", "", {0, 30}),
    ("overlap", "vertical", {30}),
    ("overhang", "", {90, math.hypot(90, 50)}),
  ],
)
def test_measures_of_two_boxes(key, role, values):
  first, second = (B, A) if key == "overhang" else (A, B)
  found = pair_values(key, role, first, second)
  assert found == values


def test_an_overlap_may_be_an_area():
  assert pair_values("overlap", "", A, (60, 10, 190, 100)) == {40, 1600}
  assert pair_values("overlap", "", A, (60, 20, 190, 100)) == {40, 30, 1200}


def test_a_distance_is_one_of_centres_or_boxes():
  found = pair_values("d", "", A, B)
  assert {110, 30} <= found and 35 not in found  # offsets of 110 and 35
  assert {110, 30, 130, 190, 90} <= pair_values("d", "horizontal", A, B)
