"""Behaviors of a teacher: two calls for each chain, and what its answers are checked for."""

import json

import pytest
from chain_solutions import settings, solution

from spatial_vlm.reuse.chains.chain_check import sound_chain
from spatial_vlm.reuse.extraction.teacher_extraction import extract_by_teacher, refusal

HEAD = "The head of the {X} points towards the {Y}."
GOOD = {
  "name": "behavior_head_direction",
  "instruction": "yes when the head of X points towards Y",
  "relation": "facing",
  "verdict": "yes",
}


class Teacher:
  """Answers reflections with a sentence and extractions with `behaviors`; keeps what it was asked."""

  def __init__(self, behaviors=(GOOD,), reflect=lambda i: "Look at the head.", write=json.dumps):
    self.behaviors, self.reflect, self.write = list(behaviors), reflect, write
    self.rounds = []

  def __call__(self, questions):
    self.rounds.append(questions)
    if questions and questions[0].schema is None:
      return [self.reflect(i) for i in range(len(questions))]
    return [self.write({"behaviors": self.behaviors}) for _ in questions]


def extracted(solutions, teacher, **changes):
  given = settings(ask=teacher, **changes)
  return extract_by_teacher(solutions, given), given.refused


def test_three_calls_make_a_behavior_and_the_chain_is_the_first():
  teacher = Teacher()
  (behavior,), _ = extracted([solution(i, HEAD) for i in range(3)], teacher)
  assert behavior.line == "behavior_head_direction: yes when the head of X points towards Y"
  assert (behavior.relation, behavior.questions) == ("facing", ("The X is facing the Y.",))
  assert behavior.provenance == ("train:0", "train:1", "train:2")
  reflections, extractions = teacher.rounds
  assert (
    "The dog is facing the horse." in reflections[0].text and "Reasoning:" in reflections[0].text
  )
  assert reflections[0].schema is None and extractions[0].schema is not None
  assert extractions[0].text.startswith(reflections[0].text)
  assert "Look at the head." in extractions[0].text


def test_names_differ_but_similar_instructions_support_each_other():
  names = iter(["behavior_a", "behavior_b", "behavior_c"])
  teacher = Teacher(write=lambda _: json.dumps({"behaviors": [GOOD | {"name": next(names)}]}))
  (behavior,), _ = extracted([solution(i, HEAD) for i in range(3)], teacher)
  assert len(behavior.provenance) == 3


def test_one_name_for_several_instructions_supports_none_of_them():
  """Five chains state one rule and a sixth another, shorter one under the same name."""
  behaviors = [GOOD] * 5 + [GOOD | {"instruction": "yes: X looks small"}]
  written = iter(behaviors)
  teacher = Teacher(write=lambda _: json.dumps({"behaviors": [next(written)]}))
  (behavior,), refused = extracted([solution(i, HEAD) for i in range(6)], teacher, min_support=5)
  assert behavior.instruction == GOOD["instruction"]
  assert behavior.provenance == tuple(f"train:{i}" for i in range(5))
  assert refused["fewer chains than min_support"] == 1


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"name": "Head direction"}, "the name is not"),
    ({"name": 3}, "a field of the behavior is missing or no text"),
    ({"instruction": "yes when X\npoints to Y"}, "the instruction is not one line"),
    ({"instruction": "yes when X is 200 units from Y"}, "the instruction has numbers"),
    ({"name": "behavior_x_580"}, "the instruction has numbers"),
    ({"instruction": "yes when X, the dog, looks at Y"}, "the behavior names an object"),
    ({"instruction": "yes when X looks at the Horses"}, "the behavior names an object"),
    ({"name": "behavior_dog_head"}, "the behavior names an object"),
    ({"instruction": "yes when they look at each other"}, "the instruction does not mention X"),
    ({"relation": "facing away from"}, "the relation is not that of the chain"),
    ({"relation": "not facing"}, "the relation is not that of the chain"),
    ({"relation": "blessing"}, "the relation is not that of the chain"),
    ({"verdict": "no"}, "the verdict is not that of the chain"),
    ({"instruction": "No when X points to Y"}, "the verdict is not that of the chain"),
    ({"instruction": "X points to Y " * 20}, "the behavior has more tokens"),
    ({"instruction": "yes when X centre x > Y centre x"}, "a comparison of the instruction"),
    ({"instruction": "yes: X's right edge < Y's left edge"}, ""),
    ({"relation": "is facing", "instruction": "Yes: X points to Y"}, ""),
  ],
)
def test_each_behavior_is_checked_against_its_chain(change, reason):
  source = solution(0, HEAD)
  assert refusal(GOOD | change, source, sound_chain(source), settings()).startswith(reason)
  behaviors, refused = extracted([source], Teacher([GOOD | change]), min_support=1)
  assert bool(behaviors) == (not reason)
  assert sum(refused[r] for r in refused if reason and r.startswith(reason)) == bool(reason)


@pytest.mark.parametrize("relation", ["reversed behind", "has behind it", "has the Y behind it"])
def test_exchanged_roles_are_a_relation(relation):
  source = solution(0, HEAD, caption="The {X} has the {Y} behind it.")
  fields = GOOD | {"relation": relation}
  assert refusal(fields, source, sound_chain(source), settings()) == ""
  assert "relation" in refusal(
    GOOD | {"relation": "behind"}, source, sound_chain(source), settings()
  )


@pytest.mark.parametrize("text", ["", "[]", "{", '{"behaviors": 3}', None])
def test_unreadable_answers_are_drawn_once_more_then_counted(text):
  teacher = Teacher(write=lambda _: text)
  behaviors, refused = extracted([solution(0, HEAD)], teacher)
  assert behaviors == [] and refused["the teacher wrote no readable list of behaviors"] == 1
  assert [[q.attempt for q in asked] for asked in teacher.rounds] == [[0], [0], [1]]


def test_a_second_answer_and_an_answer_in_a_fence_are_read():
  written = iter(["{", f"```json\n{json.dumps({'behaviors': [GOOD]})}\n```"])
  teacher = Teacher(write=lambda _: next(written))
  behaviors, _ = extracted([solution(0, HEAD)], teacher, min_support=1)
  assert [b.name for b in behaviors] == [GOOD["name"]]


def test_missing_reflections_support_and_wrong_chains_are_counted():
  wrong = solution(3, HEAD, verdict=0)
  teacher = Teacher(reflect=lambda i: "" if i == 0 else "ok")
  behaviors, refused = extracted([solution(0, HEAD), solution(1, HEAD), wrong], teacher)
  assert behaviors == [] and len(teacher.rounds[1]) == 1
  assert refused["the teacher wrote no reflection"] == 1
  assert refused["fewer chains than min_support"] == 1
  assert refused["the chain is not verified"] == 1


def test_each_relation_has_its_share_of_the_questions():
  other = [solution(i, HEAD, caption="The {X} is near the {Y}.") for i in range(3)]
  teacher = Teacher()
  extracted([*(solution(i, HEAD) for i in range(9)), *other], teacher, teacher_chains=2)
  asked = [question.text.splitlines()[0] for question in teacher.rounds[0]]
  assert [sum(word in text for text in asked) for word in ("facing", "near")] == [2, 2]


def test_without_a_teacher_there_is_nobody_to_ask():
  with pytest.raises(ValueError, match="settings.ask is None"):
    extract_by_teacher([solution(0, HEAD)], settings())
