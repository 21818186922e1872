"""Behaviors and handbooks: what they refuse, how they merge, what a limit evicts."""

import dataclasses
import json

import pytest

from spatial_vlm.evaluation.results import RecallCount
from spatial_vlm.reuse.chains.solutions import source_record
from spatial_vlm.reuse.handbook.handbook import (
  Behavior,
  Handbook,
  HandbookError,
  LeakError,
)


def behavior(name="left_of", instruction="yes when X x < Y x", **fields):
  defaults = {
    "relation": "left of",
    "questions": (f"The X is {name.replace('_', ' ')} the Y.",),
    "provenance": ("train:1", "train:2"),
    "tokens": 10,
  }
  return Behavior(f"behavior_{name}", instruction, **defaults | fields)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"name": "Left Of"}, "does not match"),
    ({"name": "left_of\n"}, "does not match"),
    ({"instruction": "two\nlines"}, "one line"),
    ({"instruction": "  "}, "one line"),
    ({"questions": ()}, "answers no question"),
    ({"provenance": ()}, "SPLIT:ID"),
    ({"provenance": ("17",)}, "SPLIT:ID"),
    ({"tokens": 0}, "tokens ≥ 1"),
    ({"recalls": -1}, "0 ≤ successes ≤ recalls"),
    ({"recalls": 1, "successes": 2}, "0 ≤ successes ≤ recalls"),
    ({"saved_tokens": float("nan")}, "saved_tokens of behavior_left_of is nan"),
  ],
)
def test_unusable_behaviors_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    behavior(**fields)


def test_same_name_is_one_behavior():
  old = behavior(provenance=("train:1",), recalls=1, successes=1, saved_tokens=4.0)
  new = behavior(
    instruction="no when X x > Y x",
    provenance=("train:2", "train:3"),
    **{"recalls": 3, "successes": 2, "saved_tokens": 20.0},
  )
  (merged,) = Handbook(9, 99).upsert([old]).upsert([new]).behaviors
  assert merged.instruction == "no when X x > Y x"  # the more useful one
  assert merged.provenance == ("train:2", "train:3")  # the records of this instruction
  assert (merged.recalls, merged.successes, merged.saved_tokens) == (4, 3, 16)  # (4 + 3 × 20) / 4


def test_instructions_equal_up_to_writing_are_one_behavior():
  a = behavior("left_of", "yes when X x < Y x")
  b = behavior("at_the_left_side_of", "Yes, when the X x < the Y x.", provenance=("train:9",))
  (merged,) = Handbook(9, 99, (b, a)).behaviors
  assert merged.name == "behavior_left_of"
  assert set(merged.questions) == {*a.questions, *b.questions}


@pytest.mark.parametrize("reverse", [False, True])
def test_of_two_instructions_the_better_supported_stays_with_its_own_sources(reverse):
  rule = "yes when X x < Y x"
  often = [behavior(instruction=rule, provenance=(f"train:{i}",), tokens=20) for i in range(5)]
  once = behavior(instruction="yes: X looks small", provenance=("train:9",), questions=("X, Y?",))
  candidates = [*often, once][:: -1 if reverse else 1]
  (merged,) = Handbook(9, 99, tuple(candidates)).behaviors
  assert merged.instruction == rule
  assert merged.provenance == tuple(f"train:{i}" for i in range(5))
  assert {*merged.questions} == {"X, Y?", *often[0].questions}


@pytest.mark.parametrize("other", ["yes when Y x < X x", "yes when X x > Y x", "no when X x < Y x"])
def test_opposite_instructions_stay_apart(other):
  handbook = Handbook(9, 99, (behavior("left_of"), behavior("right_of", other)))
  assert len(handbook) == 2


def test_a_behavior_that_links_two_joins_all_three():
  a = behavior("a", "one")
  b = behavior("b", "two")
  link = behavior("a", "two", questions=("The X is c the Y.",))
  handbook = Handbook(9, 99, (a, behavior("z", "last"), b, link))
  assert [x.name for x in handbook.behaviors] == ["behavior_a", "behavior_z"]
  assert len(handbook.behaviors[0].questions) == 3


def test_behaviors_of_different_relations_are_never_merged():
  """Not by name, instruction or question; names stay unique, also when the handbook is read again."""
  a, b = behavior(), behavior(relation="right of")
  c = behavior("c", relation="touching")
  handbook = Handbook(9, 99, (a, b, c))
  names = ["behavior_left_of", "behavior_left_of_2", "behavior_c"]
  assert [x.name for x in handbook.behaviors] == names
  written = json.loads(json.dumps(handbook.to_json()))
  assert Handbook.from_json(written, "h.json") == handbook


def test_utility_is_recalls_times_success_rate_times_saved_tokens():
  assert behavior(recalls=8, successes=6, saved_tokens=50.0).utility == 8 * (6 / 8) * 50
  assert behavior(saved_tokens=50.0).utility == 0


def test_the_entry_limit_evicts_by_rank():
  used = behavior("used", "a", provenance=("train:1",), recalls=9, successes=1, saved_tokens=1.0)
  better = dataclasses.replace(used, name="behavior_better", instruction="e", successes=2)
  wrong = behavior("wrong", "f", recalls=9, successes=0, saved_tokens=100.0)
  longer = behavior("longer", "g", recalls=9, successes=9, saved_tokens=-1.0)
  supported = behavior("supported", "b", provenance=("train:1", "train:2", "train:3"))
  short = behavior("short", "c", tokens=5)
  long = behavior("long", "d", tokens=6)
  all_of_them = (long, better, wrong, short, longer, used, supported)
  unequal = [dataclasses.replace(b, questions=(f"The X is {b.name} the Y.",)) for b in all_of_them]
  handbook = Handbook(7, 99, tuple(unequal))
  assert len(handbook) == 7
  order = []
  for entries in range(6, 0, -1):
    before = {x.name for x in handbook.behaviors}
    handbook = dataclasses.replace(handbook, max_entries=entries)
    order += before - {x.name for x in handbook.behaviors}
  names = "longer wrong long short supported used".split()
  assert order == [f"behavior_{name}" for name in names]


def test_equal_utility_evicts_the_latest():
  a, b = behavior("a", "one"), behavior("b", "two")
  assert [x.name for x in Handbook(1, 99, (a, b)).behaviors] == ["behavior_a"]


def test_the_token_limit_counts_all_lines():
  a = behavior("a", "one", tokens=60, recalls=1, successes=1, saved_tokens=1.0)
  b = behavior("b", "two", tokens=41)
  assert len(Handbook(9, 101, (a, b))) == 2
  assert [x.name for x in Handbook(9, 100, (a, b)).behaviors] == ["behavior_a"]
  assert len(Handbook(9, 59, (a,))) == 0


def test_recalls_are_counted():
  """Measured saved tokens replace an estimate; without a measurement the estimate stays."""
  known = behavior("b", "two", recalls=2, successes=1, saved_tokens=30.0)
  handbook = Handbook(9, 99, (behavior("a", "one"), known))
  found = [behavior("c", "three", saved_tokens=99.0), behavior("d", "four", saved_tokens=99.0)]
  recalls = {
    "behavior_b": RecallCount(3, 2, 80.0),
    "behavior_c": RecallCount(1, 1, 10.0),
    "behavior_d": RecallCount(1, 1, None),
    "behavior_forgotten": RecallCount(7, 7, 10.0),
  }
  counted = handbook.upsert(found, recalls).behaviors
  assert [x.recalls for x in counted] == [0, 5, 1, 1]
  assert [x.successes for x in counted] == [0, 3, 1, 1]
  assert [x.saved_tokens for x in counted] == [0, 60, 10, 99]  # (2 × 30 + 3 × 80) / 5
  assert [x.recalls for x in handbook.behaviors] == [0, 2]


def test_recalls_count_before_a_limit_applies():
  found = [
    behavior("a", "one", provenance=("train:1", "train:2")),
    behavior("b", "two", provenance=("train:3",)),
  ]
  recalls = {"behavior_b": RecallCount(1, 1, 5.0)}
  for kept, counts in (("behavior_a", {}), ("behavior_b", recalls)):
    assert [x.name for x in Handbook(1, 99).upsert(found, counts).behaviors] == [kept]


def test_recalls_count_once_where_two_behaviors_are_merged():
  found = [behavior("a", "one"), behavior("a", "two", questions=("The X is c the Y.",))]
  counts = {"behavior_a": RecallCount(3, 2, 5.0)}
  assert [x.recalls for x in Handbook(9, 99).upsert(found, counts).behaviors] == [3]


def test_provenance_guard():
  handbook = Handbook(9, 99, (behavior(provenance=("train:1", "validation:7")),))
  handbook.refuse_leaks(["test", "val"])
  with pytest.raises(LeakError, match="behavior_left_of.*validation:7"):
    handbook.refuse_leaks(["validation"])


def test_provenance_guard_compares_contents_where_splits_were_renamed():
  record = source_record("train", 7, ("train2017/a.jpg", "The cat is left of the mug."))
  handbook = Handbook(9, 99, (behavior(provenance=("train:1", record)),))
  handbook.refuse_leaks(["test"], [("a.jpg", "The cat is right of the mug.")])
  with pytest.raises(LeakError, match="from 1 evaluation records.*train:7:"):
    handbook.refuse_leaks(["test"], [("a.jpg", "the cat is left of the mug")])


def test_provenance_guard_compares_captions_where_images_have_no_name():
  record = source_record("train", 7, ("train2017/a.jpg", "The cat is left of the mug."))
  handbook = Handbook(9, 99, (behavior(provenance=("train:1", record)),))
  handbook.refuse_leaks(["vsr_zeroshot"], [("", "The cat is right of the mug.")])
  with pytest.raises(LeakError, match="from 1 evaluation records.*train:7:"):
    handbook.refuse_leaks(["vsr_zeroshot"], [("", "the cat is left of the mug")])


def test_what_is_written_is_read():
  handbook = Handbook(
    9,
    99,
    (behavior("a", "X’s gap ≤ 3"), behavior("b", "two", recalls=4, successes=3, saved_tokens=2.5)),
  )
  written = json.dumps(handbook.to_json())
  assert Handbook.from_json(json.loads(written), "h.json") == handbook


@pytest.mark.parametrize(
  ("change", "place"),
  [
    (lambda d: d.pop("max_tokens"), "h.json: expected the fields"),
    (lambda d: d.update(version=1), "h.json: version is 1, readable is 3; run `behaviors` again"),
    (lambda d: d.update(max_entries=True), "h.json.max_entries: expected int"),
    (lambda d: d.update(max_entries=0), "h.json: a handbook needs limits"),
    (lambda d: d.update(max_entries=1), "h.json: behaviors repeat"),
    (lambda d: d["behaviors"].append(d["behaviors"][0]), "h.json: behaviors repeat"),
    (lambda d: d["behaviors"].append([]), r"behaviors\[2\]: expected the fields"),
    (lambda d: d["behaviors"][1].update(extra=1), r"behaviors\[1\]: expected the fields"),
    (lambda d: d["behaviors"][1].update(tokens="3"), r"behaviors\[1\].tokens: expected int"),
    (lambda d: d["behaviors"][1].update(name="../b"), r"behaviors\[1\]: name '../b'"),
    (lambda d: d["behaviors"][1].update(provenance=["a:1", 2]), r"\[1\].provenance\[1\]: 2 is not"),
    (lambda d: d["behaviors"][0].update(provenance=[]), r"behaviors\[0\]: provenance"),
  ],
)
def test_a_damaged_file_is_named_with_the_place(change, place):
  data = Handbook(9, 99, (behavior("a", "one"), behavior("b", "two"))).to_json()
  data = json.loads(json.dumps(data))
  change(data)
  with pytest.raises(HandbookError, match=place) as error:
    Handbook.from_json(data, "folder/h.json")
  assert "folder/h.json" in str(error.value)


def test_a_stream_of_100_000_candidates_stays_within_the_limits_and_keeps_the_useful():
  """Every 500th candidate has proved useful; a candidate may repeat an earlier one under another wording."""
  candidates = [
    behavior(
      f"b{i % 50_000}",
      f"do {i % 50_000} {'The' * (i >= 50_000)}",
      relation=f"relation {i % 60}",
      provenance=(f"train:{i}",),
      **{"recalls": 4, "successes": 3, "saved_tokens": 9.0} if i % 500 == 0 else {},
    )
    for i in range(100_000)
  ]
  handbook = Handbook(300, 5_000)
  for start in range(0, len(candidates), 10_000):
    handbook = handbook.upsert(candidates[start : start + 10_000])
    assert len(handbook) <= 300 and sum(b.tokens for b in handbook.behaviors) <= 5_000
  assert {b.name for b in handbook.behaviors} >= {f"behavior_b{i}" for i in range(0, 50_000, 500)}
