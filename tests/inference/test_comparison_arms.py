"""Arms of a comparison: which question each of them asks."""

import pytest

from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.inference.comparison_arms import (
  ALL,
  FULL_CHAIN,
  NO_BEHAVIOR,
  RANDOM,
  REUSE,
  WRONG,
  arms,
  behaviors_of,
)
from spatial_vlm.inference.questions import Recall
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.tasks import TASKS


def behavior(words, support):
  records = tuple(f"train:{n}" for n in range(support))
  name = f"behavior_{words.replace(' ', '_')}"
  return Behavior(name, f"do {words}", words, (f"The X is {words} the Y.",), records, 5)


@pytest.fixture
def recall():
  behaviors = (behavior("left of", 1), behavior("above", 3), behavior("inside", 2))
  return Recall(BehaviorIndex(Handbook(9, 99, behaviors), LexicalEmbedder(), 0.8), 48)


@pytest.fixture
def built(recall):
  return arms(TASKS["scenes"], recall, (0.33, 0.67))


def asked(builder, caption):
  question = builder(caption)
  return question.form, question.behavior and question.behavior.name


def test_every_arm_asks_its_question(built):
  padded = f"reuse, and {len(META_CATEGORY) - 3} behaviors of other relations"
  assert list(built)[6:] == ["reuse, 1 of 3 behaviors", "reuse, 2 of 3 behaviors", padded]
  left, painted = "The cat is left of the dog.", "The cat is painted by the dog."
  assert asked(built[FULL_CHAIN], left) == ("chain", None)
  assert asked(built[REUSE], left) == ("short", "behavior_left_of")
  assert asked(built[REUSE], painted) == ("chain", None)
  assert asked(built[NO_BEHAVIOR], left) == ("short", None)
  form, name = asked(built[WRONG], left)
  assert form == "short" and name in ("behavior_above", "behavior_inside")
  assert asked(built[RANDOM], painted)[0] == "short"
  system = built[ALL](painted).system
  assert all(line in system for line in ("do left of", "behavior_above: do above", "do inside"))
  assert asked(built["reuse, 1 of 3 behaviors"], left) == ("chain", None)
  above = "The cat is above the dog."
  assert asked(built["reuse, 1 of 3 behaviors"], above) == ("short", "behavior_above")
  assert asked(built["reuse, 2 of 3 behaviors"], above) == ("short", "behavior_above")
  assert asked(built[padded], above) == ("short", "behavior_above")
  assert asked(built[padded], "The cat is facing the dog.") == ("short", "behavior_facing")


def test_a_handbook_of_one_behavior_has_no_wrong_one():
  recall = Recall(
    BehaviorIndex(Handbook(9, 99, (behavior("above", 1),)), LexicalEmbedder(), 0.8), 48
  )
  names = [FULL_CHAIN, REUSE, NO_BEHAVIOR, RANDOM, ALL]
  assert list(arms(TASKS["scenes"], recall, ()))[:-1] == names


def test_the_row_of_all_behaviors_counts_all(recall, built):
  counts = {name: behaviors_of(name, questions, recall) for name, questions in built.items()}
  assert (counts[FULL_CHAIN], counts[NO_BEHAVIOR]) == (0, 0)
  assert (counts[REUSE], counts[WRONG], counts[ALL]) == (3, 3, 3)
  assert counts["reuse, 1 of 3 behaviors"] == 1
