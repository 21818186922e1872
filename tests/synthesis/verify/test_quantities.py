"""Numbers and comparisons that follow from boxes, and those that do not."""

import dataclasses

import pytest
from synthesis_drafts import CAT, change

from spatial_vlm.synthesis.verify.quantities import find_number_error


def error(draft):
  return find_number_error(draft.reasoning, draft.objects, tolerance=2)


@pytest.mark.parametrize(
  "reasoning",
  [
    "x=200.5 of the cat is less than x=750 of the mug.",
    "The cat (x=100–301) ends before the mug (x=700 to 800) begins, with a gap of x=399 between them.",
    "cat [100, 201, 301, 600] and mug [700, 400, 800, 500]: 301 < 700.",
    "The centre of the cat is x = (100 + 301) / 2 = 200.5; that of the mug is x = 750, so 200.5 < 750.",
    "Between x=200 (cat) and x=750 (mug) lie about 550 units, so the cat is left.",
    "x=200 for the cat and x=750 for the mug; x=200 < x=750.",
    "For the mug this means x=200 < x=750.",
    "The cat (centre x=200) is left of the mug (centre x=750), because x=200 is smaller than x=750.",
    "cat w=201, h=399; mug w=100 < cat w=201. Both of the 2 objects fill less than 30% of the image.",
    "The right half begins at x=500; the mug lies in it. cat to mug d=550 > d=400.",
    "cat x=200 < mug x=750. It overlaps the mug along y by y=100.",
    "The cat ends at x=301px and the mug begins at 700 pixels.",
    "The cat's left edge is at x: 100, its centre x is 200.",
    "cat centre x=200; mug centre x=750. The space between x=301 and x=700 is empty, so x=200 < x=750.",
    "The cat's right edge x=301 is less than the mug's left edge x=700.",
    "cat (100, 201, 301, 600), mug (700 400 800 500); their centres are (200, 400) and (750, 450).",
  ],
)
def test_numbers_that_follow_from_the_boxes_pass(reasoning):
  assert error(change(reasoning=reasoning)) is None


@pytest.mark.parametrize(
  ("reasoning", "reason"),
  [
    ("cat centre x=750; mug centre x=200; x=750 > x=200.", "x=750 matches no quantity of cat"),
    ("x=750 (cat) and x=200 (mug).", "x=750 matches no quantity of cat"),
    ("The cat spans y=100 to y=301.", "y=100 matches no quantity of cat"),
    ("cat centre x=200, mug centre x=760.", "x=760 matches no quantity of mug"),
    ("The cat's centre is at 250.", "250 matches no quantity of cat"),
    ("cat w=399 and h=201.", "w=399 matches no quantity of cat"),
    ("cat w=100 and mug w=201.", "w=100 matches no quantity of cat"),
    ("The gap between cat and mug is gap=120.", "gap=120 matches no quantity of any box"),
    ("Their centres are 500.5 apart, 411 to be precise.", "411 matches no quantity of any box"),
    ("x=750 < x=200, so it is not.", "x=750 < x=200 does not hold"),
    ("x=750 is less than x=200.", "x=750 < x=200 does not hold"),
    ("cat w=201 = mug w=100.", "w=201 = w=100 does not hold"),
    ("cat [201, 100, 600, 301] is there.", "cat has the box \\[201, 100, 600, 301\\]"),
    ("mug [100, 201, 301, 600] is there.", "mug has the box"),
    ("cat (201, 100, 600, 301) is there.", "cat has the box [201, 100, 600, 301]"),
    ("The cat ends at x=333px.", "x=333 matches no quantity of cat"),
    ("The cat's centre is at y: 100.", "y=100 matches no quantity of cat"),
    ("The cat's centre x is 750.", "x=750 matches no quantity of cat"),
    (
      "cat centre x=200; mug centre x=750. The cat's centre x=750 is on the right.",
      "x=750 matches no quantity of cat",
    ),
    (
      "The cat's centre x=200 is greater than the mug's centre x=750.",
      "x=200 > x=750 does not hold",
    ),
  ],
)
def test_numbers_from_elsewhere_are_found(reasoning, reason):
  found = error(change(reasoning=reasoning))
  assert found is not None and reason.replace("\\", "") in found


def test_a_names_last_word_refers_to_it_if_unambiguous():
  objects = (("cat", CAT), ("dining table", (0, 500, 900, 1000)))
  draft = change(objects=objects, reasoning="The cat ends at x=301 and the table at x=900.")
  assert error(draft) is None
  wrong = dataclasses.replace(draft, reasoning="The table ends at x=301, the cat at x=900.")
  assert "x=301 matches no quantity of table" in str(error(wrong))
  two = dataclasses.replace(draft, objects=(*objects, ("side table", (0, 0, 50, 50))))
  assert "x=900 matches no quantity of cat" in str(error(two))
