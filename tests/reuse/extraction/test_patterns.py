"""Behaviors from chains: derived from the chains' text, and from correct chains only."""

import dataclasses
import random

import pytest
from chain_solutions import settings

from spatial_vlm import answers
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.reuse.chains.chain_check import read_chain
from spatial_vlm.reuse.chains.comparison import Comparison, Inequality, Quantity
from spatial_vlm.reuse.chains.solutions import Solution
from spatial_vlm.reuse.extraction.extractors import extract, find_extractor
from spatial_vlm.reuse.extraction.patterns import (
  UNREAD_CAPTION,
  AlternativeShares,
  extract_behaviors,
  short_answer,
  short_from_chain,
)
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.synthesis import scene_teacher


def words(text):
  return len(text.split())


def solution(
  number=0, x=160, label=1, verdict=None, sign="<", caption="The cat is left of the red mug."
):
  verdict = label if verdict is None else verdict
  reasoning = f"cat centre x={x}; red mug centre x=640; x={x} {sign} x=640, so it is."
  boxes = [("red mug", (600, 0, 680, 80)), ("cat", (x - 20, 0, x + 20, 20))]
  text = answers.render_chain("s", answers.render_boxes(boxes), reasoning, verdict)
  return Solution(f"train:{number}", caption, "left of", "cat", "red mug", text, label)


def replaced(s, old, new):
  assert old in s.text
  return dataclasses.replace(s, text=s.text.replace(old, new))


@pytest.fixture(scope="module")
def scenes():
  source = SceneSource("train", seed=3, count=400, image_size=8)
  return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def solutions(scenes):
  return [
    Solution(
      f"train:{e.id}",
      e.record.caption,
      e.record.relation,
      e.record.subj,
      e.record.obj,
      scene_teacher.chain(e),
      e.record.label,
    )
    for e in scenes
  ]


def test_every_relation_of_the_scenes_gives_its_procedure(solutions):
  found = {b.name: b.instruction for b in extract_behaviors(solutions, words, 5)}
  assert found == {
    "behavior_above": "yes when X centre y < Y centre y",
    "behavior_below": "yes when X centre y > Y centre y",
    "behavior_far_from": "yes when X to Y d > d=400",
    "behavior_inside": "yes when X to Y overhang=0",
    "behavior_left_of": "yes when X centre x < Y centre x",
    "behavior_near": "yes when X to Y d < d=400",
    "behavior_parallel_to": "yes when X w < h, Y w < h or X w > h, Y w > h",
    "behavior_perpendicular_to": "yes when X w < h, Y w > h or X w > h, Y w < h",
    "behavior_right_of": "yes when X centre x > Y centre x",
    "behavior_touching": "yes when X to Y gap=0",
  }


def test_the_order_of_the_chains_does_not_matter(solutions):
  shuffled = random.Random(0).sample(solutions, len(solutions))
  assert extract_behaviors(shuffled, words, 5) == extract_behaviors(solutions, words, 5)


def test_short_answers_of_scenes_state_the_comparison(scenes, solutions):
  behaviors = {b.name: b for b in extract_behaviors(solutions, words, 5)}
  for example, s in zip(scenes, solutions, strict=True):
    behavior = behaviors["behavior_" + s.relation.replace(" ", "_")]
    short = answers.STATEMENT.parse(short_from_chain(behavior, s))
    assert (short.form, short.verdict, short.steps["behavior"]) == ("short", s.label, behavior.name)
    expected = scene_teacher.comparison(example)
    if s.relation == "inside":
      expected = expected.replace(f"{s.subj} in {s.obj}", f"{s.subj} to {s.obj}")
    if s.relation in ("parallel to", "perpendicular to"):
      expected += f", so it is {'' if s.label else 'not '}{s.relation} it"
    assert short.steps["comparison"] == expected


@pytest.mark.parametrize(
  ("caption", "label", "meaning"),
  [
    ("The cat is inside the red mug.", 1, ", so it is inside it"),
    ("The cats are inside the red mug.", 0, ", so they are not inside it"),
    ("The cat is not inside the red mug.", 0, ", so it is inside it"),
    ("The cat is not inside the red mug.", 1, ", so it is not inside it"),
    ("The cat contains the red mug.", 0, ""),
    ("Cats!", 1, ""),
  ],
)
def test_several_inequalities_are_followed_by_what_they_mean(caption, label, meaning):
  sides = [Quantity(value, "x", "left edge", owner) for value, owner in ((20, "cat"), (40, "mug"))]
  one = Inequality(sides[0], "<", sides[1])
  behavior = Behavior("behavior_b", "compare", "inside", ("q",), ("train:1",), 3)
  asked = dataclasses.replace(solution(caption=caption), label=label)
  for inequalities, expected in (((one,), ""), ((one, one), meaning)):
    comparison = Comparison(inequalities)
    short = answers.STATEMENT.parse(short_answer(behavior, comparison, asked))
    assert short.steps["comparison"] == comparison.with_names + expected
    assert short.verdict == label


def test_the_instruction_follows_the_policy_not_the_relation():
  """A policy that argues by other quantities gets that reasoning as its behavior."""
  caption = "The cat is beyond the red mug."
  odd = [
    dataclasses.replace(
      replaced(
        solution(i, caption=caption), "x=160 < x=640", "cat bottom edge y=20 < red mug y=80"
      ),
      relation="beyond",
    )
    for i in range(3)
  ]
  (behavior,) = extract_behaviors(odd, words, 3)
  assert behavior.instruction == "yes when X bottom edge y < Y bottom edge y"


def test_chains_in_words_give_no_procedure():
  wordy = [
    replaced(solution(i), "; x=160 < x=640, so it is.", f"; cat faces {i} of red mug.")
    for i in range(3)
  ]
  assert extract_behaviors(wordy, words, 1) == []


def test_every_wording_of_a_comparison_is_one_procedure():
  wordings = (
    *("Since x=160 < x=640, it is.", "x=640 > x=160, which means that it is."),
    *("Given that the cat's centre x=160 is less than the red mug's centre x=640, it is.",),
    *("Comparing the centres, the red mug (x=640) lies to the right of the cat (x=160).",),
  )
  chains = [replaced(solution(i), "x=160 < x=640, so it is.", w) for i, w in enumerate(wordings)]
  (behavior,) = extract_behaviors(chains, words, 4)
  assert behavior.instruction == "yes when X centre x < Y centre x"
  shorts = {short_from_chain(behavior, c) for c in chains}
  assert shorts == {"Applying 'behavior_left_of': cat x=160 < red mug x=640\nConclusion: Yes."}


def test_a_comparison_that_both_verdicts_follow_decides_nothing():
  caption, yes = "The cat is beside the red mug.", "cat bottom edge y=20 < red mug bottom edge y=80"
  beside = [
    dataclasses.replace(
      replaced(solution(i, label=i % 2, caption=caption), "x=160 < x=640", yes), relation="beside"
    )
    for i in range(8)
  ]
  assert extract_behaviors(beside, words, 3) == []
  assert len(extract_behaviors([b for b in beside if b.label], words, 3)) == 1


def test_a_comparison_and_its_opposite_decide_nothing():
  caption = "The cat is beside the red mug."
  below = "cat bottom edge y=20 < red mug bottom edge y=80"
  chains = [
    dataclasses.replace(
      replaced(solution(i, caption=caption), "x=160 < x=640", below), relation="beside"
    )
    for i in range(3)
  ]
  low = [replaced(replaced(c, "0, 180, 20]", "0, 180, 90]"), "y=20 < ", "y=90 > ") for c in chains]
  assert [b.instruction for b in extract_behaviors(low, words, 3)] == [
    "yes when X bottom edge y > Y bottom edge y"
  ]
  assert extract_behaviors([*chains, *low], words, 3) == []


def test_short_answers_are_left_where_no_comparison_can_be_used():
  (behavior,) = extract_behaviors([solution()], words, 1)
  for text in ("so it is.", "x=640 < x=160, so it is.", "red mug x=160 < cat x=640, so it is."):
    chain = replaced(solution(), "x=160 < x=640, so it is.", text)
    assert short_from_chain(behavior, chain) is None
  assert short_from_chain(behavior, dataclasses.replace(solution(), text="Yes.")) is None


@pytest.mark.parametrize(
  "broken",
  [
    solution(label=0, verdict=1),
    solution(label=1, verdict=0),
    replaced(solution(), "Summary", "summary"),
    replaced(solution(), "Yes.", "Yes"),
    replaced(solution(), "\nReasoning", " Reasoning"),
    dataclasses.replace(solution(), text=solution().text + "\n"),
    dataclasses.replace(solution(), text="Yes."),
    dataclasses.replace(solution(), text="Applying 'behavior_left_of': a < b\nConclusion: Yes."),
    dataclasses.replace(solution(), text=""),
    solution(x=660),  # x=660 < x=640: right by luck
    solution(x=660, sign=">"),  # contradicts the conclusion
    replaced(solution(), "x=160 < x=640", "x=160 < x=650"),  # nobody's number
    replaced(solution(), "x=160 < x=640", "red mug x=160 < cat x=640"),  # wrong owners
    replaced(solution(), "x=160 < x=640, so it is.", "the cat is seen to the left."),
  ],
  ids=range(14),
)
def test_unverified_chains_do_not_count(broken):
  assert read_chain(broken).comparison is None
  good = [solution(i) for i in range(2)]
  assert extract_behaviors([*good, broken], words, 3) == []
  assert len(extract_behaviors([*good, solution(2)], words, 3)) == 1


def test_provenance_is_the_chains_that_agree():
  agree = [solution(i) for i in range(12)]
  edges = "cat right edge x=180 < red mug left edge x=600"
  other = [replaced(solution(20 + i), "x=160 < x=640", edges) for i in range(2)]
  (behavior,) = extract_behaviors([*other, *agree], words, 2)
  assert behavior.provenance == tuple(sorted(f"train:{i}" for i in range(12)))
  assert behavior.tokens == words(behavior.line) == 10


def test_a_second_way_counts_from_a_fifth_as_many_on():
  first = [solution(i) for i in range(10)]
  second = [replaced(solution(10 + i), "x=160 < x=640", "x=180 < x=600") for i in range(2)]
  (behavior,) = extract_behaviors([*first, *second], words, 2)
  assert (
    behavior.instruction == "yes when X centre x < Y centre x or X right edge x < Y left edge x"
  )
  assert len(behavior.provenance) == 12
  assert " or " not in extract_behaviors([*first, *second[:1]], words, 1)[0].instruction


def near_solution(number, threshold):
  boxes = [("cat", (140, 0, 180, 80)), ("red mug", (320, 0, 400, 80))]
  reasoning = f"cat to red mug d=200 < d={threshold}, so it is."
  text = answers.render_chain("s", answers.render_boxes(boxes), reasoning, 1)
  caption = "The cat is near the red mug."
  return Solution(f"train:{number}", caption, "near", "cat", "red mug", text, 1)


@pytest.mark.parametrize(
  ("agreeing", "outliers", "kept"), [(9, 1, True), (8, 2, True), (7, 3, False)]
)
def test_a_threshold_survives_outliers_and_a_rule_needs_one(agreeing, outliers, kept):
  thresholds = [400] * agreeing + [420 + 20 * i for i in range(outliers)]
  chains = [near_solution(i, threshold) for i, threshold in enumerate(thresholds)]
  found = [(b.instruction, b.provenance) for b in extract_behaviors(chains, words, 3)]
  records = tuple(f"train:{i}" for i in range(agreeing))
  assert found == ([("yes when X to Y d < d=400", records)] if kept else [])


def test_true_chains_are_preferred_to_false_ones():
  true = [solution(i) for i in range(2)]
  false = [solution(10 + i, x=700, label=0, sign=">") for i in range(9)]
  assert extract_behaviors([*false, *true], words, 2)[0].instruction.startswith("yes when X")
  (behavior,) = extract_behaviors([*false, *true], words, 3)
  assert behavior.instruction == "no when X centre x > Y centre x"


def test_objects_are_read_from_the_caption_where_the_record_does_not_say():
  unnamed = [dataclasses.replace(solution(i), subj=None, obj=None) for i in range(3)]
  (behavior,) = extract_behaviors(unnamed, words, 3)
  assert behavior.instruction == "yes when X centre x < Y centre x"
  assert behavior.questions == ("The X is left of the Y.",)


@pytest.mark.parametrize(
  "caption", ["To the left of the red mug there is a cat.", "Cat left of red mug"]
)
def test_relation_and_objects_are_read_from_captions_outside_of_vsrs_grammar(caption):
  unnamed = [
    dataclasses.replace(solution(i), caption=caption, relation="", subj=None, obj=None)
    for i in range(3)
  ]
  unnamed = [Solution(**dataclasses.asdict(s)) for s in unnamed]
  (behavior,) = extract_behaviors(unnamed, words, 3)
  assert behavior.line == "behavior_left_of: yes when X centre x < Y centre x"
  assert behavior.questions == (
    caption.replace("red mug", "Y").replace("cat", "X").replace("Cat", "X"),
  )


@pytest.mark.parametrize("extractor", ["pattern", "clusters"])
@pytest.mark.parametrize(
  ("caption", "relation"), [("The cat is 左 the red mug.", ""), ("Behold them!", "left of")]
)
def test_captions_without_a_name_or_objects_are_counted(extractor, caption, relation):
  good = [solution(i) for i in range(3)]
  unread = [
    Solution(f"train:{10 + i}", caption, relation, None, None, solution(i).text, 1)
    for i in range(6)
  ]
  given = settings()
  assert [b.name for b in extract(find_extractor(extractor), unread, given)] == []
  assert given.refused[UNREAD_CAPTION] == 6
  if extractor == "pattern":
    assert len(extract(find_extractor(extractor), [*good, *unread], given)) == 1


def test_wordings_of_a_relation_stay_separate_until_merged():
  caption = "The cat is at the left side of the red mug."
  other = [
    dataclasses.replace(solution(i, caption=caption), relation="at the left side of")
    for i in range(3)
  ]
  found = extract_behaviors([solution(i) for i in range(3)] + other, words, 3)
  assert [b.name for b in found] == ["behavior_at_the_left_side_of", "behavior_left_of"]


def test_arguments_are_checked():
  with pytest.raises(ValueError, match="min_support is 0"):
    extract_behaviors([], words, 0)


def bars(number, label, x, y, comparison):
  """A chain about two bars whose comparison is given; boxes x and y."""
  caption = "The red bar is parallel to the blue bar."
  boxes = answers.render_boxes([("red bar", x), ("blue bar", y)])
  text = answers.render_chain("s", boxes, f"{comparison}, so it is.", label)
  return Solution(f"train:{number}", caption, "parallel to", "red bar", "blue bar", text, label)


UPRIGHT = (100, 100, 160, 400)


def test_an_alternative_that_does_not_decide_is_left_out():
  """Of a pair of bars that is not parallel, the width of X is also less than the height of Y."""
  frequent = [
    bars(i, 1, UPRIGHT, (600, 100, 660, 400), "red bar w=60 < h=300, blue bar w=60 < h=300")
    for i in range(6)
  ]
  odd = [
    bars(
      10 + i,
      1,
      UPRIGHT,
      (600, 100, 660, 400),
      "red bar w=60 < blue bar h=300, blue bar w=60 < h=300",
    )
    for i in range(3)
  ]
  (with_odd,) = extract_behaviors([*frequent, *odd], words, 2)
  assert " or " in with_odd.instruction
  crossed = [
    bars(
      20 + i,
      0,
      (100, 100, 180, 130),
      (600, 100, 660, 400),
      "red bar w=80 > h=30, blue bar w=60 < h=300",
    )
    for i in range(2)
  ]
  (behavior,) = extract_behaviors([*frequent, *odd, *crossed], words, 2)
  assert behavior.instruction == "yes when X w < h, Y w < h"
  chains = [*frequent, *odd, *crossed]
  (kept,) = extract_behaviors(chains, words, 2, AlternativeShares(frequency=0.2, right=0.0))
  assert kept.instruction == with_odd.instruction
  (one,) = extract_behaviors(chains, words, 2, AlternativeShares(frequency=1.0, right=0.0))
  assert " or " not in one.instruction
