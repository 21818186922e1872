"""Numbers on signs, clocks and of things are left out; coordinates and lengths are kept."""

import re

import pytest

from spatial_vlm.synthesis.verify.visible_numbers import without_visible_numbers

NAMES = ("bus", "mug")


@pytest.mark.parametrize(
  "text",
  [
    *("route number 42", "the number 7 bus", "bus 305", "flight 12", "platform 9", "No. 8", "#66"),
    *("a sign that reads 30", "the clock shows 10:15", "at 3 o'clock", "7 p.m.", 'says "Route 66"'),
    *("in 1998", "from 2024", "12 people", "20 white plates", "24 other boats", "99 sheep"),
  ],
)
def test_numbers_that_the_image_shows_are_left_out(text):
  assert not re.search(r"\d", without_visible_numbers(f"The mug, {text}, stands.", NAMES))


@pytest.mark.parametrize(
  "text",
  [
    *(
      "x=42",
      "bus x=305",
      "bus 320 < mug 410",
      "mug 42",
      "mug at 100 to 300",
      "30 units",
      "12 points",
    ),
    *(
      "3 units left of it",
      "a gap of 140",
      "200 wide",
      "399 apart",
      "2 times as wide",
      "30% of it",
    ),
    *("shows 260 < 560", "numbered 100 to 300", "45 degrees", "2 metres away", "x=1998"),
  ],
)
def test_coordinates_lengths_and_units_are_kept(text):
  text = f"The mug: {text}."
  assert re.findall(r"\d+", without_visible_numbers(text, NAMES)) == re.findall(r"\d+", text)
