"""Sets of accepted drafts: repetitions and surplus labels are dropped, in any order."""

import dataclasses
import random
import time

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.verify.checks import CheckedAnswer, Rejection
from spatial_vlm.synthesis.verify.selection import SelectionSettings, select

SETTINGS = SelectionSettings(max_similarity=1.0, max_label_ratio=1.0)
COUNT = 200


def outcome(record, draft, rejections=()):
  return CheckedAnswer(record, 0, False, "", draft, rejections, "m-1", Usage(1, 0, 1, 0))


@pytest.fixture(scope="module")
def scenes():
  source = SceneSource("train", 5, COUNT)
  described = (source.describe(i) for i in range(COUNT))
  return [outcome(r, scene_teacher.draft(r, scene.boxes)) for r, scene in described]


def images(outcomes):
  return [outcome.record.image for outcome in outcomes]


def renamed(original, image):
  record = dataclasses.replace(original.record, image=image)
  return dataclasses.replace(original, record=record)


def test_chains_from_one_template_stay(scenes):
  assert select(scenes, SETTINGS) == (scenes, [])


def test_rejected_drafts_are_not_compared(scenes):
  refused = dataclasses.replace(scenes[0], rejections=(Rejection("leak", ""),), draft=None)
  kept, dropped = select([refused, scenes[0], scenes[1]], SETTINGS)
  assert (kept, dropped) == (scenes[:2], [])


def test_the_same_chain_on_the_same_statement_stays_once(scenes):
  kept, dropped = select(
    [*scenes, renamed(scenes[4], "a.png"), renamed(scenes[4], "b.png")], SETTINGS
  )
  assert len(kept) == COUNT and [o.rejections[0].check for o in dropped] == 2 * ["repeated"]
  assert dropped[0].rejections[0].detail.startswith("100% similar to the one for ")


def prose(text):
  return lambda original, image: dataclasses.replace(
    renamed(original, image), draft=dataclasses.replace(original.draft, reasoning=text)
  )


def test_chains_that_differ_in_a_word_repeat_only_below_a_threshold_of_one(scenes):
  words = "The first object stands clearly to the left of the second one, since its centre has the smaller x."
  similar = (
    prose(words)(scenes[0], "a.png"),
    prose(words.replace("clearly", "well"))(scenes[0], "b.png"),
  )
  other = prose("Something else entirely is written about these two things here.")(
    scenes[0], "c.png"
  )
  everything = [*similar, other, *(o for o in scenes if o.record.relation == "left of")]
  assert select(everything, SelectionSettings(1.0, 10.0))[1] == []
  kept, dropped = select(everything, SelectionSettings(0.95, 10.0))
  assert {*images(dropped)} & {"a.png", "b.png", "c.png"} in ({"a.png"}, {"b.png"})
  assert "c.png" in images(kept)


def test_similarity_is_compared_within_relation_and_label_only(scenes):
  words = prose(
    "The same words are said of two different statements, which is no repetition at all."
  )
  by_label = {o.record.label: o for o in scenes if o.record.relation == "above"}
  both = [words(by_label[0], "a.png"), words(by_label[1], "b.png")]
  assert select(both, SelectionSettings(0.5, 1.0))[1] == []


def test_the_more_frequent_label_of_a_relation_is_cut(scenes):
  true_only = [o for o in scenes if o.record.relation != "above" or o.record.label]
  true = [o for o in true_only if o.record.relation == "above"]
  false = [o for o in scenes if o.record.relation == "above" and not o.record.label]
  kept, dropped = select(true_only + false[:4], SelectionSettings(1.0, 1.5))
  left = [o.record.label for o in kept if o.record.relation == "above"]
  assert (sum(left), len(left)) == (6, 10)
  assert len(dropped) == len(true) - 6
  assert {o.rejections[0].check for o in dropped} == {"unbalanced"}
  assert f"{len(true)} with label 1 against 4" in dropped[0].rejections[0].detail


def test_a_label_without_a_counterpart_is_dropped(scenes):
  true = [o for o in scenes if o.record.relation == "above" and o.record.label]
  assert select(true, SelectionSettings(1.0, 3.0))[0] == []


def test_the_selection_does_not_depend_on_the_order(scenes):
  copies = [renamed(o, f"copy_{i}.png") for i, o in enumerate(scenes[:30])]
  rest = [o for o in scenes if o.record.label or o.record.relation != "below"]
  everything = rest + copies
  settings = SelectionSettings(0.97, 1.2)
  expected = {*images(select(everything, settings)[0])}
  for seed in range(3):
    shuffled = random.Random(seed).sample(everything, len(everything))
    kept, dropped = select(shuffled, settings)
    assert {*images(kept)} == expected and len(kept) + len(dropped) == len(everything)
    assert images(kept) == [o.record.image for o in shuffled if o.record.image in expected]


def test_ten_thousand_chains_take_seconds(scenes):
  many = [renamed(o, f"{copy}_{i}.png") for copy in range(50) for i, o in enumerate(scenes)]
  for i, o in enumerate(many):
    draft = dataclasses.replace(o.draft, reasoning=f"{o.draft.reasoning} {i}")
    many[i] = dataclasses.replace(o, draft=draft)
  started = time.process_time()
  kept, _ = select(many, SelectionSettings(0.95, 2.0))
  assert len(kept) < len(many) == 10_000 and time.process_time() - started < 60


@pytest.mark.parametrize("values", [(0.0, 2.0), (1.1, 2.0), (0.9, 0.5)])
def test_settings_that_cannot_work_are_refused(values):
  with pytest.raises(UsageError, match="max_similarity is"):
    SelectionSettings(*values)
