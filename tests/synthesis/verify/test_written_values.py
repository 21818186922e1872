"""The values that exact, rounded and limiting numbers allow."""

import pytest

from spatial_vlm.synthesis.verify.written_values import read_claim


@pytest.mark.parametrize(
  ("before", "value", "allowed", "refused"),
  [
    ("they are ", 600, (598, 602), (597, 603)),
    ("about ", 600, (550, 650), (549, 651)),
    ("about ", 650, (625, 675), (624, 676)),
    ("roughly ", 610, (605, 615), (604, 616)),
    ("approximately ", 605, (603, 607), (602, 608)),
    ("about ", 100, (90, 110), (89, 111)),  # a tenth of it is less than half of a hundred
    ("nearly ", 40, (36, 44), (35, 45)),
    ("~", 300, (270, 330), (269, 331)),
    ("more than ", 300, (300, 600), (250, 700)),
    ("at least ", 300, (300, 500), (290, 610)),
    ("less than ", 300, (160, 300), (100, 310)),
    ("up to ", 300, (160, 300), (100, 310)),
    ("slightly more than ", 300, (280, 320), (260, 340)),
  ],
)
def test_what_a_number_allows(before, value, allowed, refused):
  claim = read_claim(before, value, tolerance=2)
  assert all(map(claim.allows, allowed)) and not any(map(claim.allows, refused))
  assert claim.is_exact == (before == "they are ")
