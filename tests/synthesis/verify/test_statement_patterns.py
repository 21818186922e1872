"""Names of the statement's objects in records and drafts."""

import dataclasses

import pytest
from synthesis_drafts import CAT, DRAFT, MUG, RECORD, change

from spatial_vlm.synthesis.verify.statement_patterns import match_objects, statement_objects


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
def test_names_come_from_the_statement(name, found):
  draft = change(objects=((name, CAT), ("mug", MUG)))
  assert match_objects(draft, RECORD) == (name if found else "", "mug")


def test_one_box_cannot_match_both_objects():
  record = dataclasses.replace(RECORD, caption="The cat is left of the cat.")
  assert match_objects(DRAFT, record) == ("cat", "")


def test_fields_help_where_the_sentence_has_another_shape():
  record = dataclasses.replace(RECORD, caption="Cat, then mug", subj="cat", obj="mug")
  assert statement_objects(record) == ("cat", "mug")
