"""Predicates of relations, and VSR's meta-categories."""

import pytest

from spatial_vlm.data.relations import META_CATEGORY, RELATIONS, gaps, offsets, overhangs

SMALL, LARGE = (400, 400, 480, 480), (200, 240, 800, 900)


def shifted(box, dx, dy):
  x1, y1, x2, y2 = box
  return x1 + dx, y1 + dy, x2 + dx, y2 + dy


@pytest.mark.parametrize(
  ("relation", "subject", "other", "holds"),
  [
    ("left of", shifted(SMALL, -80, 500), SMALL, True),
    ("left of", shifted(SMALL, -60, 0), SMALL, None),
    ("left of", shifted(SMALL, 80, -300), SMALL, False),
    ("right of", shifted(SMALL, 80, -300), SMALL, True),
    ("right of", shifted(SMALL, -80, 0), SMALL, False),
    ("above", shifted(SMALL, 300, -80), SMALL, True),  # y runs downwards
    ("above", shifted(SMALL, -300, 0), SMALL, None),
    ("below", shifted(SMALL, 0, 80), SMALL, True),
    ("below", shifted(SMALL, 0, -80), SMALL, False),
    ("near", shifted(SMALL, 340, -340), SMALL, True),
    ("near", shifted(SMALL, 0, 400), SMALL, None),
    ("near", shifted(SMALL, 0, -460), SMALL, False),
    ("far from", shifted(SMALL, 0, -460), SMALL, True),
    ("far from", shifted(SMALL, 340, 0), SMALL, False),
    ("touching", shifted(SMALL, 80, 0), SMALL, True),
    ("touching", shifted(SMALL, 120, 0), SMALL, None),
    ("touching", shifted(SMALL, 0, -140), SMALL, False),
    ("touching", SMALL, LARGE, True),
    ("inside", SMALL, LARGE, True),
    ("inside", (200, 240, 280, 320), LARGE, True),
    ("inside", shifted(SMALL, -240, 0), LARGE, None),
    ("inside", shifted(SMALL, -260, 0), LARGE, False),
    ("inside", LARGE, SMALL, False),
    ("parallel to", (0, 0, 80, 280), (500, 500, 580, 900), True),
    ("parallel to", (0, 0, 280, 80), (500, 500, 580, 900), False),
    ("parallel to", (0, 0, 280, 200), (500, 500, 580, 900), None),
    ("perpendicular to", (0, 0, 280, 80), (500, 500, 580, 900), True),
    ("perpendicular to", (0, 0, 280, 80), (500, 500, 900, 580), False),
  ],
)
def test_predicates_decide_outside_their_margin_only(relation, subject, other, holds):
  assert RELATIONS[relation].holds(subject, other) is holds


def test_distances_between_boxes():
  assert offsets((0, 0, 100, 200), (400, 20, 500, 60)) == (400, 60)
  assert gaps((0, 0, 100, 200), (400, 20, 500, 60)) == (300, 0)
  assert gaps((400, 20, 500, 60), (0, 100, 100, 200)) == (300, 40)
  assert overhangs((0, 0, 100, 200), (40, 20, 500, 160)) == (40, 40)
  assert overhangs((100, 40, 120, 60), (40, 20, 500, 160)) == (0, 0)


def test_scenes_show_eight_relations_of_four_categories_with_margins_of_two_steps():
  assert len(RELATIONS) >= 8
  assert len({relation.category for relation in RELATIONS.values()}) >= 4
  assert all(relation.margin >= 40 for relation in RELATIONS.values())


def test_meta_categories_cover_vsr():
  assert len(META_CATEGORY) == 71
  assert len(set(META_CATEGORY.values())) == 7
  assert META_CATEGORY["among"] == "Topological"
  assert META_CATEGORY["congruent"] == "Unallocated"
  assert META_CATEGORY["far away from"] == "Proximity"
  assert all(relation == relation.strip() for relation in META_CATEGORY)


def test_caption_is_in_vsrs_grammar():
  caption = RELATIONS["far from"].caption("red circle", "blue bar")
  assert caption == "The red circle is far from the blue bar."
