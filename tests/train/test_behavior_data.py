"""Fine-tuning sets from answers: short where a comparison can be used, full otherwise, nothing from wrong answers."""

import dataclasses

import numpy as np
import pytest

from spatial_vlm import answers
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.reuse.chains import chain_check
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.tasks import find_task
from spatial_vlm.train.behavior_data import RECALLS_NOTHING, STAYS_FULL, training_examples

BOXES = [("cat", (100, 100, 300, 200)), ("red mug", (600, 50, 680, 300))]
LEFT = Behavior(
  "behavior_left_of",
  "yes when X centre x < Y centre x",
  "left of",
  ("The X is left of the Y.",),
  ("train:9",),
  9,
)


def solution(reasoning, label=1, relation="left of"):
  text = answers.render_chain("s", answers.render_boxes(BOXES), reasoning, 1)
  return Solution(
    "train:1", f"The cat is {relation} the red mug.", relation, None, None, text, label
  )


RIGHT = solution("Since x=200 is less than x=640, it is.")
SEEN = solution("The cat is seen to the left.")
ELSEWHERE = solution("cat x=200 < red mug x=640.", relation="parallel to")
WRONG = (
  solution("red mug x=200 < cat x=640."),
  solution("x=640 < x=200."),
  solution("x=200 < x=640.", 0),
)


@pytest.fixture(scope="module")
def questions():
  index = BehaviorIndex(Handbook(4, 400, (LEFT,)), LexicalEmbedder(), 0.8)
  return QuestionBuilder(find_task("vsr"), "chain", Recall(index, 48))


def examples(questions, solutions, full_share=0.0):
  return training_examples(questions, solutions, ["1.jpg"] * len(solutions), full_share)


def test_a_short_answer_is_written_from_the_comparison(questions):
  (row,) = examples(questions, [RIGHT]).rows
  assert row.answer == "Applying 'behavior_left_of': cat x=200 < red mug x=640\nConclusion: Yes."
  assert row.question == questions(RIGHT.caption).text


def test_what_cannot_be_shortened_stays_a_full_chain(questions):
  found = examples(questions, [SEEN, ELSEWHERE])
  assert [row.answer for row in found.rows] == [SEEN.text, ELSEWHERE.text]
  assert found.rows[0].question == questions.without_behavior(SEEN.caption).text
  assert found.full == {chain_check.UNREADABLE: 1, RECALLS_NOTHING: 1} and not found.left_out


def test_where_a_chain_gives_no_comparison_its_boxes_do(questions):
  """`WRONG[2]` contradicts its label: nothing is learned from it."""
  found = examples(questions, [RIGHT, SEEN, *WRONG])
  assert len(found.rows) == 4 and len({row.answer for row in found.rows}) == 1
  assert found.restated.total() == 3 and found.left_out == {chain_check.OTHER_VERDICT: 1}


@pytest.mark.parametrize("relation", ["", "left of"])
def test_a_comparison_that_does_not_decide_the_statement_is_not_learned(questions, relation):
  """Also where the recalled behavior is about another relation or about none that is known."""
  facing = solution("cat x=200 < red mug x=640.", relation="facing")
  recalled = dataclasses.replace(LEFT, relation=relation)
  found = examples(_Recalling(questions, recalled), [facing])
  assert [row.answer for row in found.rows] == [facing.text]
  assert found.full == {chain_check.UNDECIDED: 1}


class _Recalling:
  """Builds questions that all recall one behavior."""

  def __init__(self, builder, behavior):
    self.builder, self.behavior = builder, behavior

  def build_all(self, captions):
    return [dataclasses.replace(q, behavior=self.behavior) for q in map(self.builder, captions)]

  def without_behavior(self, caption):
    return self.builder.without_behavior(caption)


def test_nothing_is_learned_from_wrong_answers(questions):
  found = examples(questions, [*WRONG, dataclasses.replace(RIGHT, text="Yes.")])
  assert not found.rows
  assert found.left_out == {
    **{chain_check.WRONG_NUMBER: 1, chain_check.FALSE: 1, chain_check.OTHER_VERDICT: 1},
    chain_check.NO_CHAIN: 1,
  }


def test_a_share_stays_full(questions):
  found = examples(questions, [RIGHT] * 8, full_share=0.25)
  is_full = np.array([row.answer == RIGHT.text for row in found.rows])
  assert np.flatnonzero(is_full).tolist() == [3, 7] and found.full == {STAYS_FULL: 2}


def test_the_report_has_every_count_with_its_reasons(questions):
  lines = examples(questions, [RIGHT, RIGHT, SEEN, *WRONG]).report()
  reasons = (chain_check.UNREADABLE, chain_check.WRONG_NUMBER, chain_check.FALSE)
  assert lines == [
    "5 short answers",
    f"3 of them written from the boxes of their chains ({'; '.join(f'1: {r}' for r in reasons)})",
    "0 full chains",
    f"1 answers left out (1: {chain_check.OTHER_VERDICT})",
  ]
