"""Rules of behaviors, applied to boxes."""

import pytest

from spatial_vlm.reuse.chains.rule import rule_holds

UPRIGHT, FLAT = (100, 100, 160, 400), (500, 500, 800, 560)


@pytest.mark.parametrize(
  "rule, holds",
  [
    ("X w < h, Y w > h", True),
    ("X w > h, Y w > h", False),
    ("X w > h, Y w > h or X w < h, Y w > h", True),
    ("X w < Y h", False),
    ("X w < Y w", True),
    ("X centre x < Y centre x", True),
    ("X centre y > Y centre y", False),
    ("X right edge x < Y left edge x", True),
    ("X to Y gap=0", False),
    ("X to Y gap > 10", True),
    ("X to Y horizontal gap=340", True),
    ("X to Y d > d=400", None),  # 520 along x; the space between the boxes is 340
    ("X to Y d > d=300", True),
    ("another object w > h", None),
    ("another object w > h or X w < h", True),
    ("X stands upright", None),
  ],
)
def test_a_rule_holds_for_boxes(rule, holds):
  assert rule_holds(rule, UPRIGHT, FLAT) is holds
