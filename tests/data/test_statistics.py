"""Statistics of a set of records."""

import json
from pathlib import Path

import pytest

from spatial_vlm.data.records import Record
from spatial_vlm.data.statistics import FEWER, MOST, UNANIMOUS, UNKNOWN, describe, stratum
from spatial_vlm.data.vsr import read_split

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"


def record(image, caption, label, relation="left of", true=(1, 2, 3), false=()):
  return Record(image, "", caption, label, relation, 7, json.dumps(true), json.dumps(false))


def test_sizes_and_balance_are_counted():
  records = [
    record("a.jpg", "The cat is left of the mug.", 1),
    record("b.jpg", "The cat is left of the mug.", 0, true=(1,), false=(2, 3)),
    record("a.jpg", "The dog is left of the cat.", 1, true=(1,), false=(2, 3)),
    record("c.jpg", "The dog is near the cat.", 0, "near", true=(), false=()),
    record("c.jpg", "The dog is near the cat.", 0, "near", true=(), false=(4, 5)),
  ]
  found = describe(records)
  assert (found["records"], found["images"], found["captions"]) == (5, 3, 3)
  assert found["true_share"] == 0.4 and found["contrastive_captions"] == 1
  assert found["by_relation"] == {
    "left of": {"records": 3, "true_share": pytest.approx(2 / 3)},
    "near": {"records": 2, "true_share": 0},
  }
  assert list(found["by_category"]) == ["Projective", "Proximity"]
  agreement = {name: group["records"] for name, group in found["by_agreement"].items()}
  assert agreement == {UNANIMOUS: 2, MOST: 1, FEWER: 1, UNKNOWN: 1}
  assert list(agreement) == [UNANIMOUS, MOST, FEWER, UNKNOWN]
  json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
  ("true", "false", "label", "expected"),
  [
    (3, 0, 1, UNANIMOUS),
    (2, 1, 1, MOST),
    (3, 1, 1, MOST),
    (1, 1, 1, FEWER),
    (0, 3, 0, UNANIMOUS),
    (1, 2, 0, MOST),
    (2, 1, 0, FEWER),
    (0, 0, 0, UNKNOWN),
  ],
)
def test_agreement_is_with_the_label(true, false, label, expected):
  it = record("a.jpg", "It.", label, true=tuple(range(true)), false=tuple(range(false)))
  assert stratum(it) == expected


def test_of_nothing_there_are_no_shares():
  assert describe([])["true_share"] is None


@pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")
def test_vsr_is_balanced_contrastive_and_agreed_upon():
  found = describe(read_split(VSR / "random", "train").records)
  assert f"{found['true_share']:.3f}" == "0.505"
  assert len(found["by_relation"]) == 64 and len(found["by_category"]) == 7
  assert found["by_agreement"][UNANIMOUS]["records"] == 5908 + 294 + 9 + 1
  assert found["by_agreement"][MOST]["records"] == 1419 + 46 + 3
  assert found["contrastive_captions"] > 0
