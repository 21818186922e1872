"""Verification of drafts and replies: each fault fails exactly one check, and exact drafts pass all of them."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthesis_drafts import CAT, DRAFT, EXACT, MUG, RECORD, SETTINGS, change

from spatial_vlm.data import records
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.formats import GEMINI
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.verify.checks import CHECKS, Rejection, examine, verify
from spatial_vlm.synthesis.verify.statement_patterns import match_objects, statement_objects

VSR = Path(__file__).parents[3].parent / "shared" / "vsr"


def failed(draft, record=RECORD, settings=SETTINGS):
  return [rejection.check for rejection in verify(draft, record, settings)]


def test_prose_that_agrees_with_its_boxes_passes():
  assert verify(DRAFT, RECORD, SETTINGS) == ()


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
    ("steps", {"objects": (*DRAFT.objects, ("cup/mug", (0, 0, 90, 90)))}),
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
def test_each_fault_fails_exactly_one_check(check, fields):
  assert failed(change(**fields)) == [check]


def test_every_check_is_tried_above():
  marks = test_each_fault_fails_exactly_one_check.pytestmark[0].args[1]
  assert {check for check, _ in marks} == set(CHECKS)


def test_all_reasons_are_reported_together():
  draft = change(verdict=0, summary="The statement is false.", objects=(("dog", CAT),))
  assert {"conclusion", "leak", "objects", "length"} & {*failed(draft)} == {
    *("conclusion", "leak", "objects")
  }


@pytest.mark.skipif(not VSR.exists(), reason="the VSR annotations are not beside the checkout")
def test_every_statement_of_vsr_names_two_objects_and_is_no_leak_as_a_question():
  lines = [line for file in sorted(VSR.glob("*/*.jsonl")) for line in file.open()]
  read = {record.caption: record for record in map(records.from_fields, map(json.loads, lines))}
  assert len(read) > 4000
  for record in read.values():
    names = statement_objects(record)
    draft = change(
      summary=f"Does it hold that {record.caption.lower().rstrip('.')}?",
      objects=tuple(zip(names, (CAT, MUG), strict=True)),
      reasoning=f"{names[0]} centre x=200 < {names[1]} centre x=750.",
    )
    assert match_objects(draft, record) == names
    for check in ("objects", "boxes", "numbers", "leak", "steps"):
      assert CHECKS[check](draft, record, SETTINGS) is None, record.caption


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
  text = GEMINI.render(DRAFT)
  assert examine(reply(text), GEMINI, RECORD, SETTINGS) == (DRAFT, ())
  draft, rejections = examine(reply(text[:-9]), GEMINI, RECORD, SETTINGS)
  assert draft is None and [rejection.check for rejection in rejections] == ["format"]


@pytest.mark.parametrize(("text", "finish"), [(None, "SAFETY"), ("whole", "MAX_TOKENS")])
def test_a_reply_that_did_not_end_by_itself_is_refused(text, finish):
  text = text and GEMINI.render(DRAFT)
  expected = (Rejection("finish", f"finish reason {finish}"),)
  assert examine(reply(text, finish), GEMINI, RECORD, SETTINGS) == (None, expected)


def test_an_empty_reply_is_refused():
  expected = (Rejection("finish", "the text is empty"),)
  assert examine(reply(None), GEMINI, RECORD, SETTINGS) == (None, expected)
