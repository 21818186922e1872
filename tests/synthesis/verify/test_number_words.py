"""Numbers in words become digits where they measure, and stay words where they count."""

import pytest

from spatial_vlm.synthesis.verify.number_words import with_digits


@pytest.mark.parametrize(
  ("text", "digits"),
  [
    ("twelve", "12"),
    ("ninety-degree", "90-degree"),
    ("twenty-five percent", "25 percent"),
    ("a hundred units", "100 units"),
    ("one hundred and five units", "105 units"),
    ("three hundred forty", "340"),
    ("a thousand units", "1000 units"),
    ("1,000 units", "1000 units"),
    ("ten units", "10 units"),
    ("three times as wide", "3 times as wide"),
    ("twice as wide", "2 times as wide"),
  ],
)
def test_numbers_that_measure(text, digits):
  assert with_digits(text) == digits


@pytest.mark.parametrize(
  "text",
  [
    *(
      "two cats and one mug",
      "objects one and two",
      "one of them",
      "a cat",
      "three times",
      "twice",
    ),
    *("the cat (100,201,301,600)", "hundreds of people", "often", "someone"),
  ],
)
def test_words_that_count_or_are_no_numbers(text):
  assert with_digits(text) == text
