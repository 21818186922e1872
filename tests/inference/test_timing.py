"""Seconds of questions that are asked alone."""

import pytest

from spatial_vlm.data.records import JsonlSource
from spatial_vlm.inference import timing
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.reuse.embedding.embedder import load_embedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.statements import relation_keys
from spatial_vlm.tasks import TASKS


@pytest.fixture(scope="module")
def source(scenes_folder):
  return JsonlSource(scenes_folder / "test.jsonl", scenes_folder / "images")


def test_timed_questions_warm_up_before_the_clock(source):
  """The first question of each program is answered twice, all prefixes are filled, caches of captions cleared."""
  asked = []

  class Fake:
    def encode(self, example):
      return example

    def program(self, row):
      return row.id == 2, 64

    def fill_prefixes(self, row, id):
      asked.append(f"prefix {id}")

    def forget_captions(self):
      asked.append("forget")

    def answer(self, rows, ids):
      asked.extend(ids)

  seconds = timing.time_one_by_one(Fake(), source, 3)
  assert asked[:5] == ["prefix 0", 0, "prefix 1", "prefix 2", 2]
  assert asked[5:] == ["forget", 0, "forget", 1, "forget", 2]
  assert seconds.keys() == {0, 1, 2} and all(value > 0 for value in seconds.values())


def test_no_cache_answers_for_a_timed_question(source, monkeypatch):
  """Each timed caption is read and embedded anew, also when it was answered or timed before."""
  embedder = load_embedder("spatial_vlm/assets/tiny_encoder")
  question = "The X is painted by the Y."
  behavior = Behavior("behavior_b", "look", "", (question,), ("train:1",), 5)
  index = BehaviorIndex(Handbook(9, 99, (behavior,)), embedder, 0.5)
  builder = QuestionBuilder(TASKS["scenes"], "chain", Recall(index, 48))
  captions = [source[i].record.caption for i in range(2)]
  assert captions[0] == captions[1]
  builder.build_all(captions)
  encoded, clock = [], timing.time.perf_counter
  rows = embedder._encode_rows
  monkeypatch.setattr(embedder, "_encode_rows", lambda *args: encoded.append(1) or rows(*args))
  starts = []
  monkeypatch.setattr(
    timing.time,
    "perf_counter",
    lambda: (
      starts.append((len(encoded), relation_keys.read_relation.cache_info().misses)) or clock()
    ),
  )
  assert timing.choosing_seconds(builder, source, 2).keys() == {0, 1}
  for before, after in (starts[:2], starts[2:]):
    assert after[0] > before[0] and after[1] > before[1]
