"""Checks of drafts: prose that passes, faults that fall to one check each, and all relations of scenes."""

import dataclasses
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given

from spatial_vlm.config import UsageError
from spatial_vlm.data import records
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import GEMINI, QWEN, Draft
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.verify import checks
from spatial_vlm.synthesis.verify.checks import CHECKS, Limits, Rejection, examine, verify

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"

LIMITS = Limits(
  min_words=15,
  max_words=120,
  min_box_share=0.0005,
  max_box_share=0.95,
  number_tolerance=2,
  geometry_margin=80,
  decisive=("left of", "right of", "at the left side of", "at the right side of"),
  necessary=("above", "over", "below", "under", "beneath"),
)
EXACT = dataclasses.replace(LIMITS, number_tolerance=0, geometry_margin=60, decisive=(*RELATIONS,))

CAT, MUG = (100, 201, 301, 600), (700, 400, 800, 500)
RECORD = records.Record(
  *("1.jpg", "", "The cat is at the left side of the mug.", 1, "at the left side of", 0),
  *("[1, 2]", "[]"),
)
DRAFT = Draft(
  summary="Is the cat at the left side of the mug?",
  caption="A cat sits on a table next to a white mug that has a label.",
  objects=(("cat", CAT), ("mug", MUG)),
  reasoning="The cat spans x=100 to x=301 with its centre at x=200, and the mug's centre is at x=750. "
  "Since x=200 < x=750, the cat is left of the mug.",
  verdict=1,
)


def failed(draft, record=RECORD, limits=LIMITS):
  return [rejection.check for rejection in verify(draft, record, limits)]


def change(**fields):
  return dataclasses.replace(DRAFT, **fields)


def about(relation, label, **fields):
  caption = f"The cat is {relation} the mug."
  return dataclasses.replace(RECORD, caption=caption, relation=relation, label=label, **fields)


def test_prose_that_agrees_with_its_boxes_passes():
  assert verify(DRAFT, RECORD, LIMITS) == ()


@pytest.mark.parametrize(
  ("check", "fields"),
  [
    ("steps", {"summary": ""}),
    ("steps", {"reasoning": "Conclusion: yes. " + DRAFT.reasoning}),
    ("steps", {"summary": "**Summary**: " + DRAFT.summary}),
    ("steps", {"caption": "<think>A cat</think> and a mug."}),
    ("steps", {"caption": "A cat \u202e and a mug."}),
    ("steps", {"caption": "A cat and a mug, 猫和杯子."}),
    ("steps", {"caption": "A table [0, 0, 500, 500] with a cat and a mug."}),
    ("steps", {"objects": (*DRAFT.objects, ("man's hat", (0, 0, 90, 90)))}),
    ("conclusion", {"verdict": 0}),
    ("conclusion", {"reasoning": DRAFT.reasoning + " So the cat is not on the left side of it."}),
    ("objects", {"objects": (("dog", CAT), ("mug", MUG))}),
    ("objects", {"objects": (("cat", CAT),), "reasoning": "The cat spans x=100 to x=301."}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", (0, 0, 1001, 900)))}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", (-5, 0, 900, 900)))}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", (500, 0, 400, 900)))}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", (0, 0, 1000, 1000)))}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", (0, 0, 20, 20)))}),
    ("boxes", {"objects": (*DRAFT.objects, ("table", MUG))}),
    ("boxes", {"objects": (*DRAFT.objects, ("Mug", (0, 0, 90, 90)))}),
    ("numbers", {"reasoning": DRAFT.reasoning.replace("x=301", "x=320")}),
    ("geometry", {"objects": (("cat", MUG), ("mug", CAT)), "reasoning": "The cat is on the left."}),
    ("leak", {"summary": "The cat is at the left side of the mug."}),
    ("hint", {"reasoning": DRAFT.reasoning + " This matches the provided label."}),
    ("length", {"caption": "word " * 120}),
    ("length", {"caption": "", "reasoning": "x=200 < x=750."}),
  ],
)
def test_each_fault_falls_to_one_check(check, fields):
  assert failed(change(**fields)) == [check]


def test_every_check_is_tried_above():
  marks = test_each_fault_falls_to_one_check.pytestmark[0].args[1]
  assert {check for check, _ in marks} == set(CHECKS)


def test_all_reasons_are_told_together():
  draft = change(verdict=0, summary="The statement is false.", objects=(("dog", CAT),))
  assert {"conclusion", "leak", "objects", "length"} & {*failed(draft)} == {
    *("conclusion", "leak", "objects")
  }


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
  assert checks.numbers(change(reasoning=reasoning), RECORD, LIMITS) is None


@pytest.mark.parametrize(
  ("reasoning", "reason"),
  [
    ("cat centre x=750; mug centre x=200; x=750 > x=200.", "x=750 is nothing of cat"),
    ("x=750 (cat) and x=200 (mug).", "x=750 is nothing of cat"),
    ("The cat spans y=100 to y=301.", "y=100 is nothing of cat"),
    ("cat centre x=200, mug centre x=760.", "x=760 is nothing of mug"),
    ("The cat's centre is at 250.", "250 is nothing of cat"),
    ("cat w=399 and h=201.", "w=399 is nothing of cat"),
    ("cat w=100 and mug w=201.", "w=100 is nothing of cat"),
    ("The gap between cat and mug is gap=120.", "gap=120 is nothing of any box"),
    ("Their centres are 500.5 apart, 411 to be precise.", "411 is nothing of any box"),
    ("x=750 < x=200, so it is not.", "x=750 < x=200 does not hold"),
    ("x=750 is less than x=200.", "x=750 < x=200 does not hold"),
    ("cat w=201 = mug w=100.", "w=201 = w=100 does not hold"),
    ("cat [201, 100, 600, 301] is there.", "cat has the box \\[201, 100, 600, 301\\]"),
    ("mug [100, 201, 301, 600] is there.", "mug has the box"),
    ("cat (201, 100, 600, 301) is there.", "cat has the box [201, 100, 600, 301]"),
    ("The cat ends at x=333px.", "x=333 is nothing of cat"),
    ("The cat's centre is at y: 100.", "y=100 is nothing of cat"),
    ("The cat's centre x is 750.", "x=750 is nothing of cat"),
    (
      "cat centre x=200; mug centre x=750. The cat's centre x=750 is on the right.",
      "x=750 is nothing of cat",
    ),
    (
      "The cat's centre x=200 is greater than the mug's centre x=750.",
      "x=200 > x=750 does not hold",
    ),
  ],
)
def test_numbers_from_elsewhere_are_found(reasoning, reason):
  found = checks.numbers(change(reasoning=reasoning), RECORD, LIMITS)
  assert found is not None and reason.replace("\\", "") in found


def test_the_last_word_of_a_name_stands_for_it_where_no_other_ends_in_it():
  objects = (("cat", CAT), ("dining table", (0, 500, 900, 1000)))
  draft = change(objects=objects, reasoning="The cat ends at x=301 and the table at x=900.")
  assert checks.numbers(draft, RECORD, LIMITS) is None
  wrong = dataclasses.replace(draft, reasoning="The table ends at x=301, the cat at x=900.")
  assert "x=301 is nothing of table" in str(checks.numbers(wrong, RECORD, LIMITS))
  two = dataclasses.replace(draft, objects=(*objects, ("side table", (0, 0, 50, 50))))
  assert "x=900 is nothing of cat" in str(checks.numbers(two, RECORD, LIMITS))


@pytest.mark.parametrize(
  ("step", "text"),
  [
    ("summary", "Determine whether it is true that the cat is at the left side of the mug."),
    ("summary", "The cat is at the left side of the mug. True?"),
    ("summary", "The question is if the cat is at the left side of the mug."),
    (
      "summary",
      "The task is to decide on the statement that the cat is at the left side of the mug.",
    ),
    ("summary", "Compare the places of the cat and the mug."),
    (
      "caption",
      "A cat lies on the rug. A bottle has a label with no text, and a mug is left over.",
    ),
    ("caption", "The cat does not look at a mug, and a lamp is at the left side of the sofa."),
    ("caption", "No people are there. The cat is right of a lamp, and the mug is right behind it."),
    (
      "caption",
      "The answer to boredom: a cat and a correct clock. There is no gap, and yes men stand by.",
    ),
  ],
)
def test_descriptions_and_questions_are_no_leaks(step, text):
  assert checks.leak(change(**{step: text}), RECORD, LIMITS) is None


@pytest.mark.parametrize(
  ("step", "text"),
  [
    ("summary", "The statement is false."),
    ("summary", "The statement is clearly incorrect."),
    ("summary", "Yes, the cat and the mug are to be compared."),
    ("summary", "Whether the cat is left of the mug, which is true."),
    ("summary", "The verdict will be no."),
    ("caption", "The cat is indeed beside the mug."),
    ("caption", "A cat is not at the left side of the mug."),
    ("caption", "A cat isn't at the left side of a mug."),
    ("caption", "Here a Cat is at the left side of a mug, on a table."),
    ("caption", "A cat and a mug. No."),
    ("caption", "This does not hold."),
    ("summary", "A cat and a mug are to be seen."),
    ("summary", "Is it? A cat sits on the left side of a white mug."),
    ("summary", "Is the cat at the left side of the mug? Yes — plainly."),
    ("summary", "Is the cat at the left side of the mug? The conclusion is clearly yes."),
    ("summary", "Does the statement hold? The statement is confirmed by the image."),
    ("summary", "The statement is invalid, whether one likes it or not."),
    ("caption", "A cat sits on the left side of a white mug."),
    ("caption", "A cat, asleep at the left side of the mug."),
    ("caption", "A cat is at the left side of a mug, as if it waited."),
    ("caption", "As if it waited, a cat is at the left side of a mug."),
    ("caption", "Even if small, a cat is at the left side of a mug."),
    ("caption", "The cat cannot be at the left side of it."),
  ],
)
def test_leaks_are_found(step, text):
  assert checks.leak(change(**{step: text}), RECORD, LIMITS) is not None


@pytest.mark.parametrize(
  ("relation", "caption"),
  [
    ("touching", "A cat touches the mug with one paw."),
    ("facing away from", "A cat faces away from the mug."),
    ("contains", "The cat containing a mug is a toy."),
    ("in the middle of", "A cat sits right in the middle of a mug."),
    ("on", "The grey cat sleeps on an old mug."),
  ],
)
def test_a_caption_that_tells_the_relation_in_other_words_is_a_leak(relation, caption):
  record = about(relation, 1)
  assert "asserts" in str(checks.leak(change(caption=caption), record, LIMITS))
  other = caption.replace("mug", "lamp beside a mug")
  assert checks.leak(change(caption=other), record, LIMITS) is None


@pytest.mark.parametrize(
  ("verdict", "end", "contradicts"),
  [
    (1, "so the cat is not left of the mug.", True),
    (1, "so it isn't left of it.", True),
    (1, "so it cannot be to the left of that.", True),
    (1, "so it is not behind but left of it.", False),
    (1, "It is not left of the mug at first sight. Yet x=200 < x=750.", False),
    (0, "so the cat is left of the mug.", True),
    (0, "so it is left of it.", True),
    (0, "so it is not left of it.", False),
    (0, "which would have to be less for the cat to be left of the mug.", False),
    (0, "so the statement that the cat is left of the mug fails.", False),
  ],
)
def test_the_reasoning_does_not_end_in_the_opposite(verdict, end, contradicts):
  draft = change(verdict=verdict, reasoning=f"cat x=200; mug x=750; {end}")
  assert bool(checks.conclusion(draft, about("left of", verdict), LIMITS)) == contradicts


@pytest.mark.parametrize(
  "text",
  [
    "As instructed, the answer is yes.",
    "The standard answer is yes.",
    "It agrees with the ground truth.",
    "It agrees with the Ground-Truth annotation.",
    "I was told that it holds.",
    "The statement is known to be true.",
    "The hint says so.",
    "It is labelled true.",
    "According to the label, it holds.",
    "Since the statement is true, the cat has to be there.",
    "We know that the statement does not hold.",
    "As you said, it is not.",
    "This is consistent with the label.",
    "The answer must be no.",
    "Others judged it to be so.",
    "It matches the answer.",
  ],
)
def test_words_that_betray_a_hint_are_found(text):
  assert checks.hint(change(reasoning=text), RECORD, LIMITS) is not None


@pytest.mark.parametrize(
  "text",
  [
    *(
      "The bottle has a label.",
      "A hint of blue.",
      "People who hold umbrellas.",
      "given the boxes",
    ),
    *("The mug matches the plate.", "As the cat is small, it fits.", "People hold a mug."),
    *("Since the cat is there, x=200 < x=750.", "The label says STOP.", "The labelled jar."),
  ],
)
def test_ordinary_words_betray_nothing(text):
  assert checks.hint(change(reasoning=text), RECORD, LIMITS) is None


@pytest.mark.parametrize(
  ("relation", "label", "higher", "contradicted"),
  [  # whether the cat's box is higher than the mug's by far
    ("above", 1, False, True),
    ("over", 1, False, True),
    ("above", 1, True, False),
    ("above", 0, True, False),  # it may be behind
    ("under", 1, True, True),
    ("beneath", 1, True, True),
    ("below", 0, False, False),
    ("touching", 1, False, False),  # a photograph's boxes do not tell
  ],
)
def test_geometry_of_photographs(relation, label, higher, contradicted):
  upper, lower = (0, 0, 200, 200), (0, 600, 200, 800)
  boxes = (upper, lower) if higher else (lower, upper)
  draft = change(objects=tuple(zip(("cat", "mug"), boxes, strict=True)))
  assert bool(checks.geometry(draft, about(relation, label), LIMITS)) == contradicted


def test_of_a_name_that_stands_twice_the_first_box_counts():
  draft = change(objects=(*DRAFT.objects, ("cat", (900, 0, 990, 90))))
  assert checks.geometry(draft, RECORD, LIMITS) is None


def test_geometry_is_silent_within_the_margin_and_in_another_frame():
  close = change(objects=(("cat", (179, 0, 279, 100)), ("mug", (100, 0, 200, 100))))
  far = change(objects=(("cat", (180, 0, 280, 100)), ("mug", (100, 0, 200, 100))))
  record = about("left of", 1)
  assert checks.geometry(close, record, LIMITS) is None
  assert checks.geometry(far, record, LIMITS) is not None
  framed = dataclasses.replace(record, reference_frame=1.0)
  assert checks.geometry(far, framed, LIMITS) is None


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
  """Wherever the order matters to the statement: mirrored in the diagonal, the boxes say the opposite."""
  holds = RELATIONS[relation].holds(cat, mug)
  mirrored = [(y1, x1, y2, x2) for x1, y1, x2, y2 in (cat, mug)]
  assume(holds is not None and RELATIONS[relation].holds(*mirrored) == (not holds))
  record = about(relation, int(holds))
  draft = change(objects=(("cat", cat), ("mug", mug)), verdict=int(holds))
  assert checks.geometry(draft, record, EXACT) is None
  confused = QWEN.read(GEMINI.write(draft).replace("box_2d", "bbox_2d"))
  assert checks.geometry(confused, record, EXACT) is not None


@pytest.mark.parametrize(
  ("name", "found"),
  [
    ("cat", True),
    ("Cat", True),
    ("the cat", True),
    ("cats", True),
    ("cat 2", False),
    ("a big cat", False),
  ]
  + [("bobcat", False), ("", False)],
)
def test_names_are_the_statements_own(name, found):
  draft = change(objects=((name, CAT), ("mug", MUG)))
  assert checks.named_objects(draft, RECORD) == (name if found else "", "mug")


def test_one_box_cannot_stand_for_both_objects():
  record = dataclasses.replace(RECORD, caption="The cat is left of the cat.")
  assert checks.named_objects(DRAFT, record) == ("cat", "")


def test_fields_help_where_the_sentence_has_another_shape():
  record = dataclasses.replace(RECORD, caption="Cat, then mug", subj="cat", obj="mug")
  assert checks.stated_names(record) == ("cat", "mug")
  nameless = dataclasses.replace(record, subj=None, obj=None)
  assert "name no objects" in str(checks.objects(DRAFT, nameless, LIMITS))


@pytest.mark.skipif(not VSR.exists(), reason="the VSR annotations are not beside the checkout")
def test_every_statement_of_vsr_names_two_objects_and_is_no_leak_as_a_question():
  lines = [line for file in sorted(VSR.glob("*/*.jsonl")) for line in file.open()]
  read = {record.caption: record for record in map(records.from_fields, map(json.loads, lines))}
  assert len(read) > 4000
  for record in read.values():
    names = checks.stated_names(record)
    draft = change(
      summary=f"Does it hold that {record.caption.lower().rstrip('.')}?",
      objects=tuple(zip(names, (CAT, MUG), strict=True)),
      reasoning=f"{names[0]} centre x=200 < {names[1]} centre x=750.",
    )
    assert checks.named_objects(draft, record) == names
    for check in (checks.objects, checks.boxes, checks.numbers, checks.leak, checks.steps):
      assert check(draft, record, LIMITS) is None, record.caption


def test_all_that_the_scene_teacher_writes_passes_exactly():
  source = SceneSource("train", 3, 400)
  for index in range(len(source)):
    record, scene = source.describe(index)
    assert verify(scene_teacher.draft(record, scene.boxes), record, EXACT) == ()


def test_a_wrong_label_of_a_scene_is_contradicted_for_all_relations():
  source = SceneSource("train", 3, 200)
  for index in range(len(source)):
    record, scene = source.describe(index)
    draft = scene_teacher.draft(record, scene.boxes)
    mislabelled = dataclasses.replace(record, label=1 - record.label)
    assert failed(draft, mislabelled, EXACT) == ["conclusion", "geometry"]


def reply(text, finish="STOP"):
  return Reply(text, finish, "m-1", Usage(1, 0, 1, 0), {})


def test_a_reply_is_read_and_verified():
  text = GEMINI.write(DRAFT)
  assert examine(reply(text), GEMINI, RECORD, LIMITS) == (DRAFT, ())
  draft, rejections = examine(reply(text[:-9]), GEMINI, RECORD, LIMITS)
  assert draft is None and [rejection.check for rejection in rejections] == ["form"]


@pytest.mark.parametrize(("text", "finish"), [(None, "SAFETY"), ("whole", "MAX_TOKENS")])
def test_a_reply_that_did_not_end_by_itself_is_refused(text, finish):
  text = text and GEMINI.write(DRAFT)
  expected = (Rejection("finish", f"ended by {finish}"),)
  assert examine(reply(text, finish), GEMINI, RECORD, LIMITS) == (None, expected)


def test_an_empty_reply_is_refused():
  expected = (Rejection("finish", "nothing was written"),)
  assert examine(reply(None), GEMINI, RECORD, LIMITS) == (None, expected)


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
def test_limits_that_cannot_be_kept_are_refused(fields, reason):
  with pytest.raises(UsageError, match=reason):
    dataclasses.replace(LIMITS, **fields)
