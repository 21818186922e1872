"""Parts of objects, and words for edges and centres that are none."""

import pytest

from spatial_vlm.data.measurements import read_numbers
from spatial_vlm.synthesis.verify.object_parts import part_owner


@pytest.mark.parametrize(
  ("text", "owner"),
  [
    ("The dog's head is at about x=300", "dog"),
    ("The dog's left front paw lies at x=300", "dog"),
    ("The tail of the dog reaches x=300", "dog"),
    ("The tail of the dog is at x=300", "dog"),
    ("The dog turns; its head is near x=300", ""),
    ("The dog's eyes, at around x=300", "dog"),
    ("The dog's centre is at x=300", None),
    ("The dog's left edge is at about x=300", None),
    ("The dog's right side ends at x=300", None),
    ("The dog's width is x=300", None),
    ("The dog sits at x=300", None),
    ("The dog is at x=300", None),
    ("Its centre is at x=300", None),
  ],
)
def test_whose_part_lies_at_a_number(text, owner):
  [number] = read_numbers(text, ["dog"])
  assert part_owner(number, text, ["dog"]) == owner


def test_further_coordinates_belong_to_the_same_part():
  text = "The dog's head is at x=300 and y=100"
  assert [part_owner(number, text, ["dog"]) for number in read_numbers(text, ["dog"])] == [
    "dog"
  ] * 2
