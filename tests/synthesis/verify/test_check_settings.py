"""Thresholds that cannot work."""

import dataclasses

import pytest
from synthesis_drafts import SETTINGS

from spatial_vlm.config import UsageError


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"decisive": ("left of", "facing")}, "relations \\['facing'\\]"),
    ({"necessary": ("by",)}, "relations \\['by'\\]"),
    ({"min_words": 200}, "min_words is 200 and max_words is 120"),
    ({"max_box_share": 1.5}, "max_box_share is 1.5"),
    ({"number_tolerance": -1}, "number_tolerance is -1"),
  ],
)
def test_invalid_thresholds_are_refused(fields, reason):
  with pytest.raises(UsageError, match=reason):
    dataclasses.replace(SETTINGS, **fields)
