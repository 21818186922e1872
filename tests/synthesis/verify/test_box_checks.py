"""Boxes that contradict a label, boxes in the wrong order of axes, and missing objects."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given
from synthesis_drafts import DRAFT, EXACT, RECORD, SETTINGS, about, change

from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.synthesis.formats import GEMINI, QWEN
from spatial_vlm.synthesis.verify.box_checks import check_geometry, check_objects


@pytest.mark.parametrize(
  ("relation", "label", "higher", "contradicted"),
  [  # the cat's box is far above the mug's
    ("above", 1, False, True),
    ("over", 1, False, True),
    ("above", 1, True, False),
    ("above", 0, True, False),  # it may be behind
    ("under", 1, True, True),
    ("beneath", 1, True, True),
    ("below", 0, False, False),
    ("touching", 1, False, False),  # a photograph's boxes do not decide
  ],
)
def test_geometry_of_photographs(relation, label, higher, contradicted):
  upper, lower = (0, 0, 200, 200), (0, 600, 200, 800)
  boxes = (upper, lower) if higher else (lower, upper)
  draft = change(objects=tuple(zip(("cat", "mug"), boxes, strict=True)))
  assert bool(check_geometry(draft, about(relation, label), SETTINGS)) == contradicted


def test_the_first_box_of_a_repeated_name_counts():
  draft = change(objects=(*DRAFT.objects, ("cat", (900, 0, 990, 90))))
  assert check_geometry(draft, RECORD, SETTINGS) is None


def test_geometry_is_silent_within_the_margin_and_in_another_frame():
  close = change(objects=(("cat", (179, 0, 279, 100)), ("mug", (100, 0, 200, 100))))
  far = change(objects=(("cat", (180, 0, 280, 100)), ("mug", (100, 0, 200, 100))))
  record = about("left of", 1)
  assert check_geometry(close, record, SETTINGS) is None
  assert check_geometry(far, record, SETTINGS) is not None
  framed = dataclasses.replace(record, reference_frame=1.0)
  assert check_geometry(far, framed, SETTINGS) is None


box = st.tuples(*4 * [st.integers(0, 490)]).map(
  lambda b: (
    2 * b[0],
    2 * b[1],
    2 * b[0] + 2 * min(b[2], 490 - b[0]) + 20,
    2 * b[1] + 2 * min(b[3], 490 - b[1]) + 20,
  )
)


@given(st.sampled_from(["left of", "right of", "above", "below"]), box, box)
def test_boxes_in_another_order_of_axes_are_found(relation, cat, mug):
  """If the order of axes matters to the statement, boxes mirrored in the diagonal contradict it."""
  holds = RELATIONS[relation].holds(cat, mug)
  mirrored = [(y1, x1, y2, x2) for x1, y1, x2, y2 in (cat, mug)]
  assume(holds is not None and RELATIONS[relation].holds(*mirrored) == (not holds))
  record = about(relation, int(holds))
  draft = change(objects=(("cat", cat), ("mug", mug)), verdict=int(holds))
  assert check_geometry(draft, record, EXACT) is None
  confused = QWEN.parse(GEMINI.render(draft).replace("box_2d", "bbox_2d"))
  assert check_geometry(confused, record, EXACT) is not None


def test_a_statement_without_names_is_refused():
  nameless = dataclasses.replace(RECORD, caption="Cat, then mug", subj=None, obj=None)
  assert "name no objects" in str(check_objects(DRAFT, nameless, SETTINGS))
