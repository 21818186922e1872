"""From a caption to the question that is asked."""

import pytest

from spatial_vlm.inference.questions import plan_answers
from spatial_vlm.reuse.behaviors import Behavior, Handbook
from spatial_vlm.reuse.embedder import LexicalEmbedder
from spatial_vlm.reuse.index import BehaviorIndex
from spatial_vlm.tasks import statements

LEFT = Behavior(
  "behavior_left_of", "yes when X x < Y x", ("The X is left of the Y.",), ("train:1",), tokens=12
)
BESIDE = Behavior(
  "behavior_left", "look aside", ("The X is of the left of the Y.",), ("train:2",), tokens=4
)


@pytest.fixture
def index():
  return BehaviorIndex(Handbook(9, 99, (LEFT, BESIDE)), LexicalEmbedder(), floor=0.6)


def test_a_known_relation_is_asked_in_the_short_form(index):
  (plan,) = plan_answers(index, ["The hot dog is left of the dining table."], max_tokens=20)
  assert (plan.form, plan.behavior) == ("short", LEFT)
  assert plan.similarity == pytest.approx(1)
  line = "behavior_left_of: yes when X x < Y x"
  assert plan.question == f"The hot dog is left of the dining table. True? Use {line}"


def test_an_unknown_relation_falls_back_to_the_full_chain(index):
  captions = ["The cat is inside the mug.", "The cat is left of the mug.", "What is this?"]
  plans = plan_answers(index, captions, max_tokens=20)
  assert [plan.form for plan in plans] == ["chain", "short", "chain"]
  assert plans[0].question == statements.question(captions[0], "chain")
  assert (plans[0].behavior, plans[0].similarity) == (None, 0)


def test_beyond_the_budget_nothing_else_is_recalled_in_its_place(index):
  """The next in similarity may say the opposite."""
  caption = "The cat is left of the mug."
  found = [plan_answers(index, [caption], budget)[0] for budget in (12, 11)]
  assert [plan.behavior for plan in found] == [LEFT, None]
  assert found[1].question == statements.question(caption, "chain")
