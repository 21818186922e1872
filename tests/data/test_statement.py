"""VSR's grammar, on hand-written statements and on all of its annotations."""

import json
from pathlib import Path

import pytest

from spatial_vlm.data.statement import read_statement

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"


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


@pytest.mark.parametrize("caption", ["A cat sits on my mug", "Is the cat left of the mug?", ""])
def test_other_sentences_are_no_statements(caption):
  assert read_statement(caption) is None


@pytest.mark.skipif(not VSR.exists(), reason="the VSR annotations are not beside the checkout")
def test_the_grammar_reads_every_annotation_of_vsr():
  records = [json.loads(x) for f in sorted(VSR.glob("*/*.jsonl")) for x in f.open()]
  assert len(records) > 10_000
  for record in records:
    subj, relation, obj = read_statement(record["caption"])
    assert relation.removeprefix("is ") == record["relation"], record["caption"]
    assert record["caption"].startswith(f"The {subj} ") and f" the {obj}" in record["caption"]
