"""Prose as teachers write it: true answers pass all checks of the 8b preset, false twins fall."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthesis_drafts import CAT, DRAFT, MUG, RECORD, about, change

from spatial_vlm import config
from spatial_vlm.config import settings_from
from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.data.statement import read_statement
from spatial_vlm.synthesis.formats import GEMINI
from spatial_vlm.synthesis.verify.check_settings import SEPARATING, CheckSettings
from spatial_vlm.synthesis.verify.checks import verify

SHARED = Path(__file__).parents[3].parent / "shared" / "cases" / "teacher_prose.jsonl"
PATHS = ["data.records=r", "data.images=i", "evaluation=e"]
LIMITS = settings_from(CheckSettings, config.load("configs/synthesize.py:8b", PATHS).checks)
FULL = (0, 0, 1000, 1000)


def failed(draft, record=RECORD):
  return [rejection.check for rejection in verify(draft, record, LIMITS)]


def about_touching(label, end):
  """A draft about "touching" whose Reasoning ends in this sentence, and its record."""
  draft = change(
    summary="Is the cat touching the mug?",
    reasoning=f"The cat spans x=100 to x=301 and the mug spans x=700 to x=800, with gap=399. {end}",
    verdict=label,
  )
  return draft, about("touching", label)


def inside(relation, label, cat=CAT, mug=FULL):
  """A draft about two boxes, one of which may fill the image, and its record."""
  draft = change(
    summary=f"Is the cat {relation} the mug?",
    objects=(("cat", cat), ("mug", mug)),
    reasoning="The boxes of the two objects overlap along both axes, and walls are visible around it.",
    verdict=label,
  )
  return draft, about(relation, label)


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not beside the checkout")
def test_true_answers_to_vsr_that_break_no_instruction_pass():
  refused = {}
  for line in SHARED.read_text().splitlines():
    case = json.loads(line)
    record = _record(case["caption"], case["label"])
    if rejections := failed(GEMINI.parse(json.dumps(case["answer"])), record):
      refused[case.get("feature", case["caption"])] = rejections
  # The instruction asks for the statement's own name, which "man" is not.
  assert refused == {"man instead of person": ["objects"]}


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not beside the checkout")
def test_the_same_answers_with_changed_labels_and_boxes_fall():
  for line in SHARED.read_text().splitlines():
    case = json.loads(line)
    draft = GEMINI.parse(json.dumps(case["answer"]))
    record = _record(case["caption"], case["label"])
    wrong = dataclasses.replace(record, label=1 - record.label)
    assert "conclusion" in failed(draft, wrong)
    (first, a), (second, b), *rest = draft.objects
    swapped = dataclasses.replace(draft, objects=((first, b), (second, a), *rest))
    assert failed(swapped, record), record.caption


def _record(caption, label):
  statement = read_statement(caption)
  assert statement is not None
  relation = max((r for r in META_CATEGORY if r in statement[1]), key=len)
  return Record("1.jpg", "", caption, label, relation, 0, "[1]", "[]")


@pytest.mark.parametrize(
  ("label", "end", "falls"),
  [
    (0, "The cat sits near it without touching the mug.", []),
    (0, "The cat is nowhere near touching the mug.", []),
    (0, "The paw stops short of touching it, so the cat is far from touching the mug.", []),
    (0, "The cat fails to touch the mug.", []),
    (0, "The cat avoids touching the mug.", []),
    (0, "The cat is touching the mug.", ["conclusion"]),
    (0, "The cat is barely touching the mug.", ["conclusion"]),
    (1, "The cat is touching the mug.", []),
    (1, "The cat sits near it without touching the mug.", ["conclusion"]),
    (1, "The cat is not touching the mug.", ["conclusion"]),
    (1, "So the cat never touches it.", ["conclusion"]),
  ],
)
def test_sentences_that_deny_in_other_words(label, end, falls):
  assert failed(*about_touching(label, end)) == falls


def test_a_longer_relation_does_not_assert_the_shorter_one():
  draft = change(
    summary="Is the cat facing the mug?",
    reasoning="The cat spans x=100 to x=301 and its back points to the mug, so the cat is facing away from it.",
    verdict=0,
  )
  assert failed(draft, about("facing", 0)) == []
  toward = dataclasses.replace(draft, reasoning=draft.reasoning.replace("away from it", "it"))
  assert failed(toward, about("facing", 0)) == ["conclusion"]


def test_a_caption_that_denies_with_without_is_a_leak():
  draft, record = about_touching(0, "The cat sits there without touching the mug.")
  leaking = dataclasses.replace(draft, caption="A cat sits on a table without touching the mug.")
  assert failed(leaking, record) == ["leak"]


@pytest.mark.parametrize(
  ("relation", "label"),
  [
    ("inside", 1),
    ("at", 1),
    ("on", 1),
    ("touching", 1),
    ("in front of", 1),
    ("part of", 0),
    ("beneath", 0),
  ],
)
def test_one_object_of_the_statement_may_fill_the_image(relation, label):
  assert failed(*inside(relation, label)) == []
  assert failed(*inside(relation, label, cat=FULL, mug=MUG)) == []


@pytest.mark.parametrize("relation", SEPARATING)
def test_no_object_fills_the_image_in_a_statement_that_separates(relation):
  assert "boxes" in failed(*inside(relation, 0))


def test_two_boxes_and_boxes_of_other_objects_do_not_fill_the_image():
  assert failed(*inside("inside", 1, cat=(0, 0, 1000, 999))) == ["boxes"]
  draft, record = inside("inside", 1, mug=MUG)
  other = dataclasses.replace(draft, objects=(*draft.objects, ("table", FULL)))
  assert failed(other, record) == ["boxes"]


def test_a_long_chain_passes_up_to_the_limit_that_is_told():
  spare = LIMITS.max_words - sum(
    len(text.split()) for text in (DRAFT.summary, DRAFT.caption, DRAFT.reasoning)
  )
  assert failed(change(caption=f"{DRAFT.caption} {'word ' * (spare - 1)}word")) == []
  assert failed(change(caption=f"{DRAFT.caption} {'word ' * spare}word")) == ["length"]
