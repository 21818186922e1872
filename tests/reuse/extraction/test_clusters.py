"""Behaviors from clusters of masked reasonings: the largest cluster, its medoid as a rule without numbers."""

import numpy as np
import pytest
from chain_solutions import PAIRS, settings, solution

from spatial_vlm import answers
from spatial_vlm.reuse.extraction.abstraction import deciding_sentences, masked_reasoning
from spatial_vlm.reuse.extraction.clusters import extract_by_clusters, largest_cluster

HEAD = (
  "The {X} spans x=100 to x=300. The head of the {X} points towards the {Y}, so it is facing it."
)
EYES = "The {X} spans x=100 to x=300. Its eyes and its snout are turned to the {Y} on the right."


def rule(solutions, **changes):
  (behavior,) = extract_by_clusters(solutions, settings(**changes))
  return behavior


def test_the_medoid_of_the_largest_cluster_is_the_instruction():
  solutions = [solution(i, HEAD) for i in range(4)] + [solution(i, EYES) for i in range(4, 7)]
  behavior = rule(solutions)
  assert behavior.line == "behavior_facing: yes when the head of X points towards Y"
  assert behavior.provenance == tuple(f"train:{i}" for i in range(4))
  assert behavior.questions == ("The X is facing the Y.",) and behavior.relation == "facing"
  assert behavior.tokens == len(behavior.line.split())
  assert "eyes" in rule(solutions[2:]).instruction  # now that cluster is the larger one


def test_no_object_and_no_number_gets_into_an_instruction():
  text = "The {X}'s nose at x=290 is only 310 units from the {Y}'s tail. The {X} looks at the {Y}."
  behavior = rule([solution(i, text) for i in range(4)])
  assert behavior.instruction == "yes when X looks at Y"
  words = behavior.instruction.casefold().split()
  assert not {word for pair in PAIRS for word in pair} & {*words}


def test_answers_no_count_where_there_are_not_enough_yes():
  away = "The head of the {X} points away from the {Y}."
  no = [solution(i, away, label=0) for i in range(3)]
  yes = [solution(i, HEAD) for i in range(3, 6)]
  assert rule(no + yes[:2]).instruction == "no when the head of X points away from Y"
  assert rule(no + yes).instruction.startswith("yes")


def test_wrong_chains_small_clusters_and_long_rules_give_none():
  chains = [solution(i, HEAD) for i in range(3)]
  wrong = [solution(i, HEAD, verdict=0) for i in range(3)]
  for solutions, changes, reason in (
    (wrong, {}, "the chain is not verified"),
    (chains[:2], {}, "fewer chains than min_support"),
    ([*chains[:2], solution(2, EYES)], {}, "the largest cluster has fewer chains than min_support"),
    (chains, {"max_tokens": 5}, "no reasoning of the cluster gives a rule within the limit"),
  ):
    given = settings(**changes)
    assert extract_by_clusters(solutions, given) == []
    assert [r for r in given.refused if r.startswith(reason)], given.refused


def test_relations_are_never_clustered_together():
  other = [solution(i, HEAD, caption="The {X} is facing away from the {Y}.") for i in range(2)]
  assert extract_by_clusters([*other, *(solution(i, HEAD) for i in range(2))], settings()) == []


def test_the_largest_cluster():
  vectors = np.array([[1, 0], [0, 1], [0.1, 0.995], [0, 1], [0.995, 0.1]], np.float32)
  assert largest_cluster(vectors, 0.9) == [1, 2, 3]
  assert largest_cluster(vectors[[0, 1]], 0.9) == [0]
  assert largest_cluster(vectors, 0.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  ("reasoning", "rules"),
  [
    ("The cat spans x=1 to x=9. Since x=5 < x=8, the cat is left of the mug.", []),
    ("The cat's top y=3 < the mug's top y=9, so the cat is above it.", ["X's top y < Y's top y"]),
    (
      "The gap is about 20 units. The dog sits between the cat and the mug.",
      ["another object sits between X and Y"],
    ),
    (
      "The cats are by the mugs; comparing the centres, the cat is left of the mug.",
      ["X are by Y"],
    ),
    ("cat centre x=55; mug centre x=600; x=55 < x=600, so yes.", []),
    ("The cat's left edge x=5; the width of the mug w=3; the cat to mug gap=0.", []),
    ("cat centre x=55, its head touches the mug.", ["its head touches Y"]),
  ],
)
def test_what_is_left_of_a_reasoning(reasoning, rules):
  """Measurements, conclusions, statements of the relation and comparisons without owners are dropped."""
  boxes = [("cat", (1, 1, 9, 9)), ("mug", (1, 1, 9, 9)), ("dog", (1, 1, 9, 9))]
  text = answers.render_chain("s", answers.render_boxes(boxes), reasoning, 1)
  masked = masked_reasoning(answers.STATEMENT.parse(text), ("cat", "mug"))
  assert deciding_sentences(masked, "left of") == rules


def test_measurements_alone_give_no_behavior():
  text = "{X} centre x=200; {Y} centre x=750; x=200 < x=750, so it is."
  given = settings()
  chains = [solution(i, text, caption="The {X} is left of the {Y}.") for i in range(3)]
  assert extract_by_clusters(chains, given) == []
  assert given.refused["no reasoning of the cluster gives a rule within the limit on tokens"] == 3
