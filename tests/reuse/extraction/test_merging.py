"""Behaviors of one relation that say the same are merged; opposites and other relations never are."""

import dataclasses

import numpy as np
import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.extraction.merging import merge_similar
from spatial_vlm.reuse.handbook.handbook import Behavior


class Alike:
  """Finds all texts equal."""

  fingerprint, min_similarity = "alike", 1.0

  def embed(self, texts):
    return np.ones((len(texts), 1), np.float32)

  def similarities(self, queries, candidates):
    return np.ones((len(queries), len(candidates)), np.float32)


def behavior(name, instruction, relation="left of", sources=1, **fields):
  return Behavior(
    f"behavior_{name}",
    instruction,
    relation,
    (f"The X is {relation} the Y.",),
    tuple(f"train:{name}{i}" for i in range(sources)),
    9,
    **fields,
  )


def test_other_words_around_one_comparison_are_one_behavior():
  first = behavior("centres", "yes when the centre of X < the centre of Y", sources=2)
  other = behavior("compare", "yes when the centre of X < that of Y")
  (merged,) = merge_similar([other, first], Alike(), 0.9)
  assert (merged.name, len(merged.provenance)) == ("behavior_centres", 3)


@pytest.mark.parametrize(
  "other",
  [
    *("yes when the centre of Y < the centre of X", "yes when the centre of X > the centre of Y"),
    *("no when the centre of X < the centre of Y", "yes unless not the centre of X < centre of Y"),
  ],
)
def test_opposites_stay_apart_however_similar(other):
  first = behavior("a", "yes when the centre of X < the centre of Y")
  assert len(merge_similar([first, behavior("b", other)], Alike(), 0.9)) == 2


def test_behaviors_of_other_relations_stay_apart():
  first, other = behavior("a", "yes when X < Y"), behavior("a", "yes when X < Y", "right of")
  assert merge_similar([first, other], Alike(), 0.9) == [first, other]


def test_the_most_frequent_instruction_absorbs_similar_ones_not_the_shortest():
  rule, short = "yes when the centre of X < the centre of Y", "yes when X < Y"
  many = [dataclasses.replace(behavior(f"n{i}", rule), tokens=20) for i in range(5)]
  (merged,) = merge_similar([behavior("short", short), *many], Alike(), 0.9)
  assert merged.instruction == rule and len(merged.provenance) == 6


def test_the_threshold_decides_also_for_one_name():
  texts = ("yes when the centre of X lies to the left", "yes when the outline of X ends before")
  a, b = behavior("a", texts[0]), behavior("b", texts[1])
  same_name = dataclasses.replace(b, name=a.name)
  assert len(merge_similar([a, b], LexicalEmbedder(), 0.9)) == 2
  assert len(merge_similar([a, b], LexicalEmbedder(), 0.0)) == 1
  assert len(merge_similar([a, same_name], LexicalEmbedder(), 0.9)) == 2
  assert merge_similar([], LexicalEmbedder(), 0.9) == []
