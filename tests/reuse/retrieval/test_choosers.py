"""Ways to choose a behavior that recall is compared with."""

import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.retrieval.choosers import (
  all_in_one,
  best_share,
  drawn_at_random,
  least_similar,
  the_first,
)
from spatial_vlm.reuse.retrieval.recall import recall


def behavior(words, provenance=("train:1",), **fields):
  name = "behavior_" + words.replace(" ", "_")
  question = f"The X is {words} the Y."
  return Behavior(name, f"do {words}", words, (question,), provenance, 5, **fields)


@pytest.fixture
def index():
  behaviors = (
    behavior("left of"),
    behavior("at the left side of", ("train:1", "train:2", "train:3")),
    behavior("above", recalls=4, successes=4, saved_tokens=9.0),
    behavior("inside", ("train:4", "train:5")),
  )
  return BehaviorIndex(Handbook(9, 99, behaviors), LexicalEmbedder(), 0.8)


CAPTIONS = [
  "The cat is left of the dog.",
  "The cat is above the dog.",
  "The cat is painted by the dog.",
]


def test_a_wrong_behavior_is_never_the_recalled_one(index, monkeypatch):
  recalled = recall(index, CAPTIONS)
  wrong = least_similar(index, CAPTIONS)
  assert [m and m[0].name for m in recalled] == ["behavior_left_of", "behavior_above", None]
  assert [m[0].name for m in wrong] == [
    "behavior_above",
    "behavior_at_the_left_side_of",
    "behavior_above",
  ]
  with monkeypatch.context() as patch:
    patch.setattr(BehaviorIndex, "with_handbook", lambda *_: pytest.fail("an index was made"))
    assert least_similar(index, CAPTIONS) == wrong
  assert wrong == [least_similar(index, [caption])[0] for caption in CAPTIONS]


def test_a_handbook_of_one_behavior_has_no_wrong_one(index):
  alone = index.with_handbook(Handbook(1, 99, index.handbook.behaviors[:1]))
  assert least_similar(alone, CAPTIONS[:1]) == [None]


def test_random_behaviors_repeat_and_differ(index):
  captions = [f"The cat is left of dog {number}." for number in range(60)]
  drawn = drawn_at_random(index, captions)
  assert {m[0].name for m in drawn} == {b.name for b in index.handbook.behaviors}
  assert drawn == drawn_at_random(index, captions)
  assert drawn[7] == drawn_at_random(index, captions[7:8])[0]


def test_all_behaviors_in_one_line(index):
  together = all_in_one(index)
  ((chosen, _),) = the_first(together, CAPTIONS[2:])
  assert chosen.line == " ".join(b.line for b in index.handbook.behaviors)
  assert chosen.tokens == 20 and chosen.provenance[-1] == "train:5"


@pytest.mark.parametrize(
  ("share", "kept"),
  [(0.01, ["above"]), (0.5, ["at_the_left_side_of", "above"]), (0.75, None)],
)
def test_the_most_useful_share_is_kept_in_the_handbooks_order(index, share, kept):
  part = best_share(index, share)
  names = [b.name.removeprefix("behavior_") for b in part.handbook.behaviors]
  assert names == (kept or ["at_the_left_side_of", "above", "inside"])
  assert recall(part, CAPTIONS)[0] is None
