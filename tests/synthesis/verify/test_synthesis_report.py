"""The report of a synthesis: its counts by hand, its examples, and that nothing in it is interpreted."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest
from markdown_it import MarkdownIt

from spatial_vlm.data.records import Record
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.verify.checks import CheckedAnswer, Rejection
from spatial_vlm.synthesis.verify.synthesis_report import (
  choose_examples,
  example_sheet,
  markdown,
  summarize,
)

CAT, MUG = (100, 200, 300, 600), (700, 400, 800, 500)
DRAFT = Draft("Is it?", "", (("cat", CAT), ("mug", MUG)), "x=200 < x=750.", 1)
HOSTILE = "<script>alert(1)</script> [click](http://a.example) | `x` \u202e # head\n\n# title"


def record(i, relation="left of", label=1, votes=(3, 0)):
  caption = f"The cat is {relation} the mug."
  true, false = (json.dumps([*range(n)]) for n in (votes if label else votes[::-1]))
  return Record(f"{i}.jpg", "", caption, label, relation, 0, true, false)


def outcome(record, *checks, attempt=0, hinted=False, version="m-1", text="text", draft=DRAFT):
  rejections = tuple(Rejection(check, f"{check} was bad") for check in checks)
  usage = Usage(prompt=100, cached=40, answer=20, thoughts=5)
  return CheckedAnswer(record, attempt, hinted, text, draft, rejections, version, usage)


def outcomes():
  a, b, c, d = record(0), record(1, label=0, votes=(2, 1)), record(2, "facing"), record(3, "xyz")
  return [
    outcome(a),
    outcome(b, "numbers", "geometry"),
    outcome(b, attempt=1, hinted=True),
    outcome(c, "numbers"),
    outcome(c, "hint", attempt=1, hinted=True, version="m-2"),
    outcome(d, "form", draft=None),
  ]


def test_yield_is_counted_by_record():
  summary = summarize(outcomes(), usd=1.5)
  assert json.loads(json.dumps(summary)) == summary
  assert (summary["records"], summary["accepted"], summary["yield"]) == (4, 2, 0.5)
  assert (summary["accepted_blind"], summary["accepted_hinted"]) == (1, 1)
  assert summary["true_share"] == 0.5 and summary["usd"] == 1.5
  assert summary["questions"] == {
    "blind": {"asked": 4, "accepted": 1, "yield": 0.25},
    "hinted": {"asked": 2, "accepted": 1, "yield": 0.5},
  }


def test_yield_by_relation_category_and_agreement():
  summary = summarize(outcomes())
  left = summary["by_relation"]["left of"]
  assert list(summary["by_relation"]) == ["left of", "facing", "xyz"]
  assert (left["records"], left["accepted"], left["accepted_hinted"]) == (2, 2, 1)
  assert summary["by_relation"]["facing"]["yield"] == 0
  assert {k: v["records"] for k, v in summary["by_category"].items()} == {
    "Projective": 2,
    "Orientation": 1,
    "Unallocated": 1,
  }
  agreement = {name: (g["records"], g["accepted"]) for name, g in summary["by_agreement"].items()}
  assert agreement == {"all": (3, 1), "two thirds or more": (1, 1)}


def test_rejections_versions_and_tokens_are_counted():
  summary = summarize(outcomes())
  assert summary["rejections"] == {
    "numbers": {"answers": 2, "alone": 1, "hinted": 0},
    "form": {"answers": 1, "alone": 1, "hinted": 0},
    "geometry": {"answers": 1, "alone": 0, "hinted": 0},
    "hint": {"answers": 1, "alone": 1, "hinted": 1},
  }
  assert list(summary["rejections"]) == ["numbers", "form", "geometry", "hint"]
  assert summary["model_versions"] == {"m-1": 5, "m-2": 1}
  assert summary["model_versions_accepted"] == {"m-1": 2}
  assert summary["tokens"] == {"prompt": 600, "cached": 240, "answer": 120, "thoughts": 30}


def test_a_report_without_questions_is_written():
  summary = summarize([])
  assert summary["yield"] is None and summary["tokens"]["prompt"] == 0
  assert "Of 0 records 0 have a verified chain (–)" in markdown(summary, [], "sheet.png")


def test_examples_show_every_kind_first():
  many = outcomes() + [outcome(record(i)) for i in range(4, 9)]
  chosen = choose_examples(many, accepted=3, rejected=3)
  assert [o.hinted for o in chosen[:3]] == [False, True, False]
  assert [o.rejections[0].check for o in chosen[3:]] == ["numbers", "hint", "form"]
  assert len(choose_examples(many, 100, 100)) == len(many)


def test_the_sheet_draws_the_drafts_boxes_in_the_colours_of_subject_and_object():
  def open_image(name):
    return PIL.Image.new("RGB", (200, 100))

  drawn = np.asarray(example_sheet([outcome(record(0))], open_image))
  without = np.asarray(example_sheet([outcome(record(0), "form", draft=None)], open_image))
  changed = (drawn != without).any(axis=-1)
  for color in ((255, 140, 26), (0, 214, 230)):  # orange for the subject, cyan for the object
    assert ((drawn == color).all(axis=-1) & changed).sum() > 50


def test_boxes_that_cannot_be_drawn_do_not_end_the_report():
  broken = (("cat", (300, 200, 100, 600)), ("mug", (0, 0, 1200, 500)))
  draft = dataclasses.replace(DRAFT, objects=broken)
  sheet = example_sheet(
    [outcome(record(0), "boxes", draft=draft)], lambda _: PIL.Image.new("RGB", (9, 9))
  )
  assert sheet.width > 200


def test_examples_are_shown_in_full():
  page = markdown(summarize(outcomes(), 2.5), choose_examples(outcomes(), 2, 4), "sheet.png")
  assert (
    "### 2. Accepted, hinted, attempt 2" in page and "### 3. Rejected, blind, attempt 1" in page
  )
  assert "Caption: cat [100, 200, 300, 600], mug [700, 400, 800, 500]" in page
  assert "- numbers: numbers was bad\n- geometry: geometry was bad" in page
  assert "![examples with the boxes of the teacher](sheet.png)" in page
  assert "600 prompt (240 of them cached), 120 answer, 30 thinking; 750 in all, 375 per" in page
  assert "Cost: 2.50 USD." in page


def test_an_empty_reply_is_shown_as_empty():
  silent = outcome(record(0), "finish", text=None, draft=None)
  assert "The answer is empty." in markdown(summarize([silent]), [silent], "sheet.png")


@pytest.mark.parametrize("field", ["caption", "relation", "image"])
def test_untrusted_text_is_escaped(field):
  def page(text):
    changed = dataclasses.replace(record(0), **{field: text})
    bad = outcome(changed, text, version=text, text=text)
    return markdown(summarize([bad]), [bad], "sheet.png")

  def tags(text):
    tokens = MarkdownIt().enable("table").parse(page(text))
    inside = [child for token in tokens for child in token.children or ()]
    return [token.type for token in (*tokens, *inside) if token.type != "text"]

  assert tags(HOSTILE) == tags("plain") and "\u202e" not in page(HOSTILE)
