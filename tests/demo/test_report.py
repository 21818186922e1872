"""The demo's report."""

from spatial_vlm.demo.report import evenly


def test_scenes_shown_are_spread_evenly():
  assert evenly(10, 4) == [0, 2, 5, 7]
  assert evenly(3, 5) == [0, 1, 2]
