"""From a caption to the question that is asked."""

import pytest

from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.tasks import TASKS, statements

LEFT = Behavior(
  "behavior_left_of",
  "yes when X x < Y x",
  "left of",
  ("The X is left of the Y.",),
  ("train:1",),
  tokens=12,
)
BESIDE = Behavior(
  "behavior_left",
  "look aside",
  "",
  ("The X is of the left of the Y.",),
  ("train:2",),
  tokens=4,
)


@pytest.fixture
def index():
  return BehaviorIndex(Handbook(9, 99, (LEFT, BESIDE)), LexicalEmbedder(), min_similarity=0.6)


def builder(index, behavior_tokens=20):
  return QuestionBuilder(TASKS["scenes"], "chain", Recall(index, behavior_tokens))


def test_a_known_relation_gets_the_short_form(index):
  question = builder(index)("The hot dog is left of the dining table.")
  assert (question.form, question.behavior) == ("short", LEFT)
  assert question.similarity == pytest.approx(1)
  assert question.system == "Use behavior_left_of: yes when X x < Y x"
  caption = "The hot dog is left of the dining table."
  assert question.text == statements.question(caption, "short")
  assert "behavior" not in question.text


def test_an_unknown_relation_falls_back_to_the_full_chain(index):
  captions = ["The cat is inside the mug.", "The cat is left of the mug.", "What is this?"]
  questions = builder(index).build_all(captions)
  assert [question.form for question in questions] == ["chain", "short", "chain"]
  assert questions[0].text == statements.question(captions[0], "chain")
  assert (questions[0].behavior, questions[0].similarity, questions[0].system) == (None, 0, "")


def test_beyond_the_budget_nothing_else_is_recalled_in_its_place(index):
  """The next most similar behavior may say the opposite."""
  caption = "The cat is left of the mug."
  found = [builder(index, budget)(caption) for budget in (12, 11)]
  assert [question.behavior for question in found] == [LEFT, None]
  assert found[1].text == statements.question(caption, "chain")


@pytest.mark.parametrize("form", ["chain", "direct"])
def test_without_an_index_every_question_has_the_form_of_the_builder(index, form):
  caption = "The cat is left of the mug."
  question = QuestionBuilder(TASKS["scenes"], form)(caption)
  assert (question.form, question.behavior) == (form, None)
  assert question.text == statements.question(caption, form)
  assert builder(index).without_behavior(caption).text == statements.question(caption, "chain")
