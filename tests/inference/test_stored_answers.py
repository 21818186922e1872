"""Answers that are stored a batch at a time, and read back by the next start."""

import threading
import time

import pytest
from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import (
  BadRecord,
  BadRecordError,
  Take,
  TooManyBadRecords,
)
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference import generation, stored_answers
from spatial_vlm.inference.generation import BatchGenerator
from spatial_vlm.inference.stored_answers import AnswerStore


def answers_in(folder, generator, examples, **settings):
  store = AnswerStore(epath.Path(folder), **settings)
  return stored_answers.stored_answers(store, generator, examples, "test")


@pytest.mark.parametrize("text", ["", "half a line", '{"id": 0}\n', None])
def test_a_part_without_its_last_line_is_ignored(tmp_path, text):
  path = tmp_path / "part-00000.jsonl"
  if text is not None:
    path.write_text(text)
  assert stored_answers.read_part(path) is None
  path.write_text(stored_answers.end_line(0) + "\n")
  assert stored_answers.read_part(path) == []


def test_a_deleted_line_is_answered_again(generator, source, tmp_path):
  settings = {"batch_size": 4, "in_flight": 2, "max_bad_share": 0.0}
  first = answers_in(tmp_path, generator, Take(source, 10), **settings)
  part = tmp_path / "part-00001.jsonl"
  whole = part.read_text().splitlines()
  part.write_text("\n".join([whole[0], "half a li", *whole[2:]]) + "\n")
  with pytest.raises(ValueError, match=r"part-00001.jsonl:2: .*delete the line, and its batch"):
    answers_in(tmp_path, generator, Take(source, 10), **settings)
  part.write_text("\n".join([whole[0], *whole[2:]]) + "\n")
  assert answers_in(tmp_path, generator, Take(source, 10), **settings) == first


def test_each_part_has_one_batch_and_is_read_back(generator, source, tmp_path, monkeypatch):
  first = answers_in(
    tmp_path, generator, Take(source, 10), batch_size=4, in_flight=2, max_bad_share=0.0
  )
  assert [path.name for path in sorted(tmp_path.iterdir())] == [
    f"part-0000{i}.jsonl" for i in range(3)
  ]
  assert [p.id for p in first] == list(range(10))
  monkeypatch.setattr(generation.BatchGenerator, "answer", lambda *_: pytest.fail("asked again"))
  again = answers_in(
    tmp_path, generator, Take(source, 10), batch_size=4, in_flight=2, max_bad_share=0.0
  )
  assert again == first


def test_work_in_flight_overlaps_and_comes_back_in_order():
  """Two items wait for each other; a third starts only after one of them has finished."""
  both, working, most = threading.Barrier(2, timeout=60), [], []

  def work(item):
    working.append(item)
    most.append(len(working))
    if item < 2:
      both.wait()
    time.sleep(0.01 * (5 - item))
    working.remove(item)
    return item

  assert list(stored_answers.in_order(work, range(5), 2)) == [0, 1, 2, 3, 4]
  assert max(most) == 2


def test_pending_items_finish_before_a_read_error_is_raised():
  def items():
    yield from range(3)
    raise KeyError("unreadable")

  found = []
  with pytest.raises(KeyError, match="unreadable"):
    for answer in stored_answers.in_order(lambda item: item + 10, items(), 2):
      found.append(answer)
  assert found == [10, 11, 12]


def test_an_error_in_the_work_ends_the_iteration():
  def work(item):
    return 1 // item

  results = stored_answers.in_order(work, [1, 1, 0, 1], 2)
  assert [next(results), next(results)] == [1, 1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_a_resumed_run_counts_the_images_that_were_broken_before(generator, tmp_path, monkeypatch):
  class Source:
    """Every third image is unreadable."""

    def __len__(self):
      return 6

    def __getitem__(self, index):
      if index % 3 == 0:
        raise BadRecordError(BadRecord("file", index + 1, "torn"))
      return index

    def origin(self, index):
      return "file", index + 1

  monkeypatch.setattr(BatchGenerator, "encode", lambda _, example: example)
  monkeypatch.setattr(
    BatchGenerator, "answer", lambda _, rows, ids: [prediction(i) for i in ids if i >= 0]
  )
  whole = answers_in(
    tmp_path / "whole", generator, Source(), batch_size=2, in_flight=1, max_bad_share=0.4
  )
  assert [p.id for p in whole] == [1, 2, 4, 5]
  with pytest.raises(TooManyBadRecords):
    answers_in(
      tmp_path / "parts", generator, Source(), batch_size=2, in_flight=1, max_bad_share=0.2
    )
  assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["part-00000.jsonl"]
  with pytest.raises(TooManyBadRecords):
    answers_in(
      tmp_path / "parts", generator, Source(), batch_size=2, in_flight=1, max_bad_share=0.2
    )
  assert (
    answers_in(
      tmp_path / "parts", generator, Source(), batch_size=2, in_flight=1, max_bad_share=0.4
    )
    == whole
  )


def prediction(id):
  words = dict(caption="", relation="left of", text="", truncated=False)
  return Prediction(
    id=id, label=1, verdict=1, boxes_true={}, generated_tokens=1, prompt_tokens=1, **words
  )


ORIGIN = {"embedder": "a", "behavior_left_of": "1", "behavior_above": "2"}


@pytest.mark.parametrize(
  ("later", "changes"),
  [
    ({**ORIGIN, "embedder": "b"}, "embedder"),
    (
      {**ORIGIN, "behavior_above": "3", "behavior_mine": "4"},
      "behavior_above, behavior_mine (new)",
    ),
    ({"embedder": "a", "behavior_above": "2"}, "behavior_left_of (gone)"),
    (dict(reversed(ORIGIN.items())), "another order"),
  ],
)
def test_answers_of_another_origin_are_refused_by_name(tmp_path, later, changes):
  folder = epath.Path(tmp_path / "run")
  for _ in range(2):
    stored_answers.refuse_other_origin(folder, ORIGIN, "behaviors INDEX")
  with pytest.raises(UsageError) as refusal:
    stored_answers.refuse_other_origin(folder, later, "behaviors INDEX")
  assert f"before behaviors INDEX changed: {changes}. Give another" in str(refusal.value)


@pytest.mark.parametrize("row", ["", "reuse"])
def test_answers_of_an_unknown_origin_are_refused(tmp_path, row):
  part = tmp_path / row / "predictions" / "part-00000.jsonl"
  part.parent.mkdir(parents=True)
  part.write_text(stored_answers.end_line(0) + "\n")
  with pytest.raises(UsageError, match="answers without origin.json"):
    stored_answers.refuse_other_origin(epath.Path(tmp_path), ORIGIN, "behaviors INDEX")
