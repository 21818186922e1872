"""Statements that stand in two sets."""

import json
from pathlib import Path

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data.split_guard import refuse_shared, shared_pairs

VSR = Path(__file__).parents[2].parent / "shared" / "vsr"

TRAINING = [("a.jpg", "The cat is left of the mug."), ("b.jpg", "The dog is in the car.")]


@pytest.mark.parametrize(
  ("image", "caption", "shared"),
  [
    ("a.jpg", "The cat is left of the mug.", True),
    ("train2017/a.jpg", "the  Cat is left of\tthe mug", True),
    ("b.jpg", "The cat is left of the mug.", False),
    ("a.jpg", "The cat is right of the mug.", False),
    ("a.jpg", "The dog is in the car.", False),
  ],
)
def test_a_pair_is_known_again_however_it_is_written(image, caption, shared):
  pair = (image, caption)
  assert shared_pairs(TRAINING, [pair]) == ([pair] if shared else [])
  assert shared_pairs([pair], TRAINING) == ([TRAINING[0]] if shared else [])


def test_a_training_set_that_shares_pairs_is_refused_with_the_first_of_them():
  evaluation = [("c.jpg", "The dog is in the car."), *TRAINING, TRAINING[0]]
  with pytest.raises(UsageError, match=r"(?s)^3 of the 4 evaluation pairs.*: leave them out\..*"):
    refuse_shared(TRAINING, evaluation, "leave them out")
  with pytest.raises(UsageError, match=r"\n  a\.jpg: The cat is left of the mug\.\n  b\.jpg: "):
    refuse_shared(iter(TRAINING), iter(evaluation), "leave them out")
  refuse_shared(TRAINING, evaluation[:1], "leave them out")


def pairs(file):
  records = map(json.loads, (VSR / file).read_text().splitlines())
  return [(record["image"], record["caption"]) for record in records]


@pytest.mark.skipif(not VSR.is_dir(), reason=f"the annotations of VSR are not in {VSR}")
def test_the_splits_of_vsr_overlap():
  random_train, zeroshot_dev = pairs("random/train.jsonl"), pairs("zeroshot/dev.jsonl")
  assert len(shared_pairs(random_train, zeroshot_dev)) == 236
  assert not shared_pairs(random_train, pairs("random/dev.jsonl"))
  assert not shared_pairs(pairs("zeroshot/train.jsonl"), zeroshot_dev)
  with pytest.raises(UsageError, match="236 of the 340 evaluation pairs"):
    refuse_shared(random_train, zeroshot_dev, "train on the zero-shot split")
