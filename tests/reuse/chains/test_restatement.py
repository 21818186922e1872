"""Comparisons from the boxes of a chain, where its own arithmetic is wrong."""

import pytest

from spatial_vlm import answers
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.reuse.chains.chain_check import read_chain
from spatial_vlm.reuse.chains.restatement import comparison_templates, restated
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.synthesis import scene_teacher


def solution(
  number, relation, reasoning, label=1, cat=(100, 100, 140, 180), mug=(600, 400, 680, 480)
):
  text = answers.render_chain(
    "s", answers.render_boxes([("red mug", mug), ("Cat", cat)]), reasoning, label
  )
  caption = f"The cat is {relation} the red mug."
  return Solution(f"train:{number}", caption, relation, "cat", "red mug", text, label)


FAR = solution(0, "far from", "cat to red mug d=520 > d=400, so it is.")
ABOVE = solution(1, "above", "cat centre y=140; red mug centre y=440; y=140 < y=440, so it is.")
TOUCHING = solution(2, "touching", "cat to red mug gap=0, so it is.", cat=(560, 400, 600, 440))
TEMPLATES = comparison_templates([FAR, ABOVE, TOUCHING])


@pytest.mark.parametrize(
  ("relation", "reasoning", "label", "expected"),
  [
    ("far from", "cat to red mug d=580 > d=400, so it is.", 1, "cat to red mug d=520 > d=400"),
    ("above", "y=140 < x=440, so it is above it.", 1, "cat y=140 < red mug y=440"),
    ("touching", "cat to red mug gap=300, so it is not.", 0, "cat to red mug gap=460"),
    ("far from", "cat to red mug d=380 < d=400, so it is not.", 0, None),  # the boxes say it is
    ("above", "The cat is higher, so it is not above it.", 0, None),
  ],
)
def test_numbers_and_signs_come_from_the_boxes(relation, reasoning, label, expected):
  wrong = solution(9, relation, reasoning, label)
  assert read_chain(wrong).comparison is None
  found = restated(wrong, TEMPLATES[relation])
  assert (found and found.with_names) == expected


def test_the_same_chain_is_restated_as_it_is():
  for s in (FAR, ABOVE, TOUCHING):
    assert restated(s, TEMPLATES[s.relation]) == read_chain(s).comparison


def test_without_a_box_or_the_label_nothing_is_restated():
  unboxed = Solution(**{**vars(FAR), "text": FAR.text.replace("Cat [", "dog [")})
  other_label = Solution(**{**vars(FAR), "label": 0})
  for s in (unboxed, other_label, Solution(**{**vars(FAR), "text": "Yes."})):
    assert restated(s, TEMPLATES["far from"]) is None


def test_all_chains_of_the_scene_teacher_are_restated_as_they_are():
  source = SceneSource("train", seed=4, count=200, image_size=8)
  solutions = [
    Solution(
      str(e.id),
      e.record.caption,
      e.record.relation,
      None,
      None,
      scene_teacher.chain(e),
      e.record.label,
    )
    for e in source
  ]
  templates = comparison_templates(solutions)
  for s in solutions:
    assert restated(s, templates[s.relation]) == read_chain(s).comparison
