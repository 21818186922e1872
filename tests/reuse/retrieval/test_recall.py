"""The order of the rules by which a behavior is recalled."""

import numpy as np
import pytest

from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.retrieval.recall import recall


class SameForAll:
  """Gives all texts one vector: without the rules on keys and qualifiers, any behavior would be recalled."""

  fingerprint = "same-for-all"
  min_similarity = 0.5

  def embed(self, texts):
    return np.tile(np.float32([1, 0]), (len(texts), 1))

  def similarities(self, queries, candidates):
    return np.ones((len(queries), len(candidates)), np.float32)


class Opposites(SameForAll):
  """Every text is unlike every other one."""

  fingerprint = "opposites"

  def embed(self, texts):
    return np.eye(64, dtype=np.float32)[[sum(map(ord, text)) % 64 for text in texts]]

  def similarities(self, queries, candidates):
    return self.embed(queries) @ self.embed(candidates).T


def behavior(name, relation, question="", **fields):
  question = question or f"The X is {relation} the Y."
  return Behavior(
    f"behavior_{name}", f"do {name}", relation, (question,), ("train:1",), 4, **fields
  )


def names(behaviors, captions, embedder=None):
  embedder = embedder or SameForAll()
  index = BehaviorIndex(Handbook(99, 999, tuple(behaviors)), embedder, embedder.min_similarity)
  return [match and match[0].name.removeprefix("behavior_") for match in recall(index, captions)]


LEFT, RIGHT = behavior("left", "left of"), behavior("right", "right of")
HUG = behavior("hug", "", "The X is hugging the Y.")


def test_the_exact_key_comes_first():
  captions = ["On the right of the dog is a cat.", "The cat is left of the dog.", "The cat's left."]
  found = names([HUG, LEFT, RIGHT], captions, Opposites())
  assert found == ["right", "left", None]


def test_of_several_behaviors_of_one_key_the_most_useful_is_recalled():
  question = "The X is on the left of the Y."
  useful = behavior("useful", "left of", question, recalls=3, successes=3, saved_tokens=9.0)
  for behaviors in ([LEFT, useful], [useful, LEFT]):
    assert names(behaviors, ["The cat is left of the dog."]) == ["useful"]


@pytest.mark.parametrize(
  "caption",
  [
    "The cat is not left of the dog.",
    "The cat is left of the dog from the dog's view.",
    "The dog has the cat on its left.",
    "The cat is right of the dog.",
    "The cat is at the left side of the dog.",
  ],
)
def test_a_behavior_of_another_known_relation_is_never_recalled(caption):
  assert names([LEFT], [caption]) == [None]


def test_similarity_decides_where_a_key_is_unknown():
  assert names([LEFT], ["The cat hangs out leftwards of the dog."]) == ["left"]
  assert names([HUG], ["The cat is left of the dog."]) == ["hug"]
  assert names([HUG, LEFT], ["The cat cuddles the dog."], Opposites()) == [None]


@pytest.mark.parametrize(
  "caption",
  [
    "The cat is not cuddling the dog.",
    "The cat is almost cuddling the dog.",
    "The cat cuddles the dog from the dog's point of view.",
    "The cat has the dog cuddled up to it.",
  ],
)
def test_a_qualified_statement_is_not_answered_by_similarity(caption):
  assert names([HUG], [caption]) == [None]


def test_below_min_similarity_nothing_is_recalled():
  class Weak(SameForAll):
    def embed(self, texts):
      angle = [0.0 if "X is hugging" in text else np.arccos(0.49) for text in texts]
      return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    def similarities(self, queries, candidates):
      return self.embed(queries) @ self.embed(candidates).T

  assert names([HUG], ["The cat cuddles the dog."], Weak()) == [None]


def test_without_captions_or_behaviors_nothing_is_recalled():
  assert names([LEFT], []) == []
  assert names([], ["The cat is left of the dog."]) == [None]
