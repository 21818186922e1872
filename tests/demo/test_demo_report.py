"""The demo's report."""

from spatial_vlm.demo.demo_report import evenly


def test_shown_scenes_are_evenly_spaced():
  assert evenly(10, 4) == [0, 2, 5, 7]
  assert evenly(3, 5) == [0, 1, 2]
