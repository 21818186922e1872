"""Masked captions: VSR's own sentences, its misspelt fields, and sentences of other shapes."""

import json
from pathlib import Path

import pytest

from spatial_vlm.reuse.masking import mask_objects, read_statement

VSR = Path(__file__).parents[3] / "shared" / "vsr"


@pytest.mark.parametrize(
  ("caption", "statement"),
  [
    ("The cake is next to the person.", ("cake", "is next to", "person")),
    ("The bus is at the right side of the tv.", ("bus", "is at the right side of", "tv")),
    (
      "The potted plant is at the edge of the dining table.",
      ("potted plant", "is at the edge of", "dining table"),
    ),
    ("The cow has as a part the teddy bear.", ("cow", "has as a part", "teddy bear")),
    ("The sandwich consists of the hot dog.", ("sandwich", "consists of", "hot dog")),
    ("The refrigerator contains the orange.", ("refrigerator", "contains", "orange")),
    (
      "The cell phone is in the middle of the baseball glove.",
      ("cell phone", "is in the middle of", "baseball glove"),
    ),
    ("the Cat is  left of a mug", ("Cat", "is left of", "mug")),
  ],
)
def test_statements_of_vsr(caption, statement):
  assert read_statement(caption) == statement
  assert mask_objects(caption) == f"The X {statement[1]} the Y."


def test_misspelt_fields_do_not_matter():
  """VSR's zero-shot train split says subj "orse" for this caption."""
  assert mask_objects("The horse is next to the bus.", "orse", "bus") == "The X is next to the Y."


@pytest.mark.parametrize(
  ("caption", "subj", "obj", "question"),
  [
    ("A cat sits on my mug", "cat", "mug", "A X sits on my Y"),
    (
      "Is the red circle bar near a red circle?",
      "red circle",
      "red circle bar",
      "Is the Y near a X?",
    ),
    ("Concatenate the cat, bobcat, Mug", "cat", "mug", "Concatenate the X, bobcat, Y"),
    ("Which x.y (if any) holds?", "x.y", "any)", "Which X (if any) holds?"),
    ("Nothing is said.", "", "", "Nothing is said."),
  ],
)
def test_other_sentences_keep_their_words(caption, subj, obj, question):
  assert mask_objects(caption, subj, obj) == question


@pytest.mark.skipif(not VSR.exists(), reason="the VSR annotations are not beside the checkout")
def test_the_grammar_reads_every_annotation_of_vsr():
  records = [json.loads(x) for f in sorted(VSR.glob("*/*.jsonl")) for x in f.open()]
  assert len(records) > 10_000
  for record in records:
    subj, relation, obj = read_statement(record["caption"])
    assert relation.removeprefix("is ") == record["relation"], record["caption"]
    assert record["caption"].startswith(f"The {subj} ") and f" the {obj}" in record["caption"]
