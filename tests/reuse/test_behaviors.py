"""Behaviors and handbooks: what they refuse, how they merge, what a limit evicts."""

import dataclasses
import json

import pytest

from spatial_vlm.reuse.behaviors import Behavior, Handbook, HandbookError, LeakError, read_json


def behavior(name="left_of", instruction="yes when X x < Y x", **fields):
  defaults = {
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
    ({"uses": -1}, "uses ≥ 0"),
  ],
)
def test_unusable_behaviors_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    behavior(**fields)


def test_same_name_is_one_behavior():
  old = behavior(provenance=("train:1",), uses=1)
  new = behavior(instruction="no when X x > Y x", provenance=("train:2", "train:3"), uses=5)
  (merged,) = Handbook(9, 99).upsert([old]).upsert([new]).behaviors
  assert merged.instruction == "no when X x > Y x"  # the more useful one
  assert merged.provenance == ("train:1", "train:2", "train:3")
  assert merged.uses == 6


def test_instructions_equal_up_to_writing_are_one_behavior():
  a = behavior("left_of", "yes when X x < Y x")
  b = behavior("at_the_left_side_of", "Yes, when the X x < the Y x.", provenance=("train:9",))
  (merged,) = Handbook(9, 99, (b, a)).behaviors
  assert merged.name == "behavior_left_of"
  assert set(merged.questions) == {*a.questions, *b.questions}


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


def test_the_entry_limit_evicts_by_utility():
  used = behavior("used", "a", uses=3, provenance=("train:1",))
  supported = behavior("supported", "b", provenance=("train:1", "train:2", "train:3"))
  short = behavior("short", "c", tokens=5)
  long = behavior("long", "d", tokens=6)
  handbook = Handbook(4, 99, (long, short, used, supported))
  assert len(handbook) == 4
  order = []
  for entries in (3, 2, 1):
    before = {x.name for x in handbook.behaviors}
    handbook = dataclasses.replace(handbook, max_entries=entries)
    order += before - {x.name for x in handbook.behaviors}
  assert order == ["behavior_long", "behavior_short", "behavior_supported"]


def test_equal_utility_evicts_the_latest():
  a, b = behavior("a", "one"), behavior("b", "two")
  assert [x.name for x in Handbook(1, 99, (a, b)).behaviors] == ["behavior_a"]


def test_the_token_limit_counts_all_lines():
  a, b = behavior("a", "one", tokens=60, uses=1), behavior("b", "two", tokens=41)
  assert len(Handbook(9, 101, (a, b))) == 2
  assert [x.name for x in Handbook(9, 100, (a, b)).behaviors] == ["behavior_a"]
  assert len(Handbook(9, 59, (a,))) == 0


def test_recalls_are_counted():
  handbook = Handbook(9, 99, (behavior("a", "one"), behavior("b", "two", uses=2)))
  counted = handbook.upsert(
    [behavior("c", "three")], {"behavior_b": 3, "behavior_c": 1, "behavior_d": 7}
  )
  assert [x.uses for x in counted.behaviors] == [0, 5, 1]
  assert [x.uses for x in handbook.behaviors] == [0, 2]


def test_recalls_count_before_a_limit_applies():
  found = [
    behavior("a", "one", provenance=("train:1", "train:2")),
    behavior("b", "two", provenance=("train:3",)),
  ]
  assert [x.name for x in Handbook(1, 99).upsert(found).behaviors] == ["behavior_a"]
  assert [x.name for x in Handbook(1, 99).upsert(found, {"behavior_b": 1}).behaviors] == [
    "behavior_b"
  ]


def test_recalls_count_once_where_two_behaviors_are_merged():
  found = [behavior("a", "one"), behavior("a", "two", questions=("The X is c the Y.",))]
  assert [x.uses for x in Handbook(9, 99).upsert(found, {"behavior_a": 3}).behaviors] == [3]


def test_provenance_guard():
  handbook = Handbook(9, 99, (behavior(provenance=("train:1", "validation:7")),))
  handbook.refuse_leaks(splits=["test", "val"], records=["train:2", "test:1"])
  with pytest.raises(LeakError, match="behavior_left_of.*validation:7"):
    handbook.refuse_leaks(splits=["validation"])
  with pytest.raises(LeakError, match="train:1"):
    handbook.refuse_leaks(records={"train:1"})


def test_what_is_written_is_read():
  handbook = Handbook(9, 99, (behavior("a", "X’s gap ≤ 3"), behavior("b", "two", uses=4)))
  written = json.dumps(handbook.to_json())
  assert Handbook.from_json(json.loads(written), "h.json") == handbook


@pytest.mark.parametrize(
  ("change", "place"),
  [
    (lambda d: d.pop("max_tokens"), "h.json: expected the fields"),
    (lambda d: d.update(version=99), "h.json: version is 99"),
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


def test_a_torn_file_is_named_with_the_line(tmp_path):
  text = json.dumps(Handbook(9, 99, (behavior(),)).to_json(), indent=1)
  (tmp_path / "h.json").write_text(text[: len(text) // 2])
  with pytest.raises(HandbookError, match=r"h\.json: not JSON .*line \d+"):
    read_json(tmp_path / "h.json")
