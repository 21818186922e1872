"""Teachers are told the limits that the checks use."""

import dataclasses

import pytest
from synthesis_drafts import SETTINGS

from spatial_vlm.synthesis.verify.check_settings import SEPARATING
from spatial_vlm.synthesis.verify.limits import describe_limits


@pytest.mark.parametrize(
  ("change", "told"),
  [
    ({"min_words": 21}, "have 21 to 120 words"),
    ({"max_words": 333}, "have 15 to 333 words"),
    ({"min_box_share": 0.002}, "covers 0.2% to 95%"),
    ({"max_box_share": 0.8}, "covers 0.05% to 80%"),
    ({"number_tolerance": 7.0}, "at most 7 units off"),
    ({"number_tolerance": 0}, "said of, exactly."),
    ({"geometry_margin": 44}, "less than 44 units"),
    ({"decisive": ("near",)}, 'statements with "near", boxes and conclusion agree'),
    ({"necessary": ("over",)}, 'statements with "over", boxes that miss'),
  ],
)
def test_every_limit_is_told_as_it_is_set(change, told):
  assert told in describe_limits(dataclasses.replace(SETTINGS, **change))
  assert told not in describe_limits(SETTINGS)


def test_every_setting_has_a_word_in_it():
  """A new threshold must be told too: another value of it makes another text."""
  others = {
    **{"min_words": 3, "max_words": 99, "min_box_share": 0.01, "max_box_share": 0.5},
    **{"number_tolerance": 9, "geometry_margin": 9, "decisive": ("above",), "necessary": ()},
  }
  assert {field.name for field in dataclasses.fields(SETTINGS)} == set(others)
  for name, value in others.items():
    assert describe_limits(dataclasses.replace(SETTINGS, **{name: value})) != describe_limits(
      SETTINGS
    )
  assert all(f'"{relation}"' in describe_limits(SETTINGS) for relation in SEPARATING)
