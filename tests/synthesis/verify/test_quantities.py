"""Numbers and comparisons that follow from boxes, and those that do not."""

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
from synthesis_drafts import CAT, MUG, change

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


FORMS = [
  json.loads(line)
  for line in (Path(__file__).parent / "number_forms.jsonl").read_text().splitlines()
]
"""Forms in which prose gives a number: `good` is true of the boxes of `scene`, its twin `bad` has a wrong number."""
SCENES = {
  "cat and mug": (("cat", CAT), ("mug", MUG)),
  "bus and person": (("bus", (320, 140, 860, 700)), ("person", (410, 250, 560, 980))),
  "pizza and oven": (("pizza", (300, 420, 700, 600)), ("oven", (100, 380, 900, 980))),
  "dog and sofa": (("dog", (118, 512, 322, 815)), ("sofa", (40, 430, 960, 990))),
  "boat and person": (("boat", (210, 340, 640, 700)), ("person", (520, 180, 690, 880))),
}


@pytest.mark.parametrize("case", FORMS, ids=lambda case: case["form"].replace(" ", "_"))
def test_each_form_of_a_number_passes_if_true_and_falls_if_wrong(case):
  objects = SCENES[case["scene"]]
  assert find_number_error(case["good"], objects, tolerance=2) is None
  assert find_number_error(case["bad"], objects, tolerance=2) is not None


def test_changed_coordinates_and_lengths_are_found():
  """Numbers that only the image tells cannot be checked; of all others, one in 20 may hit another quantity."""
  image_only = re.compile(
    "number|line|plate|sign|platform|display|clock|count|year|angle|ordinal|part"
  )
  rng, count, missed = random.Random(0), 0, 0
  for case in FORMS:
    if image_only.search(case["form"]):
      continue
    for number in re.finditer(r"\b\d+(?:\.\d+)?\b", case["good"]):
      for _ in range(5):
        wrong = rng.randint(0, 1000)
        if abs(wrong - float(number[0])) >= 100:
          text = case["good"][: number.start()] + str(wrong) + case["good"][number.end() :]
          count += 1
          missed += find_number_error(text, SCENES[case["scene"]], tolerance=2) is None
  assert count > 300 and missed < 0.05 * count, (missed, count)
