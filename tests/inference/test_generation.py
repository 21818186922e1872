"""Questions in, written answers out."""

import functools
import threading
import time

import jax
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import (
  BadRecord,
  BadRecordError,
  JsonlSource,
  Take,
  TooManyBadRecords,
  UnusableRecord,
)
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.inference import generation
from spatial_vlm.inference.generation import BatchGenerator, PromptShape
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.questions import plain_question
from spatial_vlm.rollout.sampler import Completions


@pytest.fixture(scope="module")
def policy(taught):
  return load_policy(str(taught))


@pytest.fixture(scope="module")
def source(scenes_folder):
  return JsonlSource(scenes_folder / "validation.jsonl", scenes_folder / "images")


@pytest.fixture
def asker(policy):
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  return BatchGenerator(
    policy, mesh, PromptShape(64, 64), 128, functools.partial(plain_question, form="chain")
  )


def test_a_prompt_that_does_not_fit_is_named_with_its_sizes(policy, source):
  row = generation.encode_question(policy.processor, source[0].image, "one two three")
  tokens = len(row.tokens)
  generation.collate(policy.processor, [row], [5], [1], PromptShape(tokens, 64))
  for shape in (PromptShape(tokens - 1, 64), PromptShape(tokens, 63)):
    with pytest.raises(
      UnusableRecord,
      match=rf"the prompt has {tokens} tokens and 64 patches.*{shape.tokens}.*{shape.patches}",
    ):
      generation.collate(policy.processor, [row], [5], [1], shape)


def test_written_stops_at_the_end_of_the_turn_and_tells_truncation(policy):
  yes = policy.processor.encode_text("Yes.")
  eos, pad = policy.special.eos, policy.special.pad
  tokens = np.full((3, 6), pad)
  tokens[0, :3] = [*yes, eos]
  tokens[1] = [yes[0]] * 6
  tokens[2, 0] = eos
  mask = np.array([[1, 1, 1, 0, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]], bool)
  found = generation.written(policy, Completions(tokens, mask, np.zeros((3, 6))))
  assert found == [
    generation.Generation("Yes.", 3, False),
    generation.Generation("Yes" * 6, 6, True),
    generation.Generation("", 1, False),
  ]
  assert generation.written_verdicts(policy, None, found) == [1, -1, -1]


def test_a_truncated_verdict_does_not_count(policy):
  assert generation.written_verdicts(policy, None, [generation.Generation("Yes.", 2, True)]) == [-1]


def test_rows_that_fill_the_batch_have_no_prediction(asker, source):
  rows = [asker.encode(source[i]) for i in (0, 1, 1, 2)]
  found = asker.answer(rows, [0, 1, -1, 2])
  assert [p.id for p in found] == [0, 1, 2]
  for p, i in zip(found, (0, 1, 2), strict=True):
    record = source[i].record
    assert (p.caption, p.relation, p.label) == (record.caption, record.relation, record.label)
    assert p.prompt_tokens == len(rows[i if i < 2 else 3][2].tokens)
    assert p.verdict in (0, 1) and p.text.startswith("Summary: ")


def test_an_answer_does_not_depend_on_the_size_of_the_batch(asker, source):
  rows = [asker.encode(source[i]) for i in range(4)]
  together = asker.answer(rows, range(4))
  apart = [asker.answer([row], [i])[0] for i, row in enumerate(rows)]
  assert apart == together


@pytest.mark.parametrize("torn", ["", "half a line", '{"id": 0}\n', None])
def test_a_part_without_its_last_line_is_no_part(tmp_path, torn):
  path = tmp_path / "part-00000.jsonl"
  if torn is not None:
    path.write_text(torn)
  assert generation.read_part(path) is None
  path.write_text(generation.END + "\n")
  assert generation.read_part(path) == []


def test_parts_hold_a_batch_each_and_are_read_back(asker, source, tmp_path, monkeypatch):
  first = generation.stored_answers(tmp_path, asker, Take(source, 10), 4, 2, 0.0, "test")
  assert [path.name for path in sorted(tmp_path.iterdir())] == [
    f"part-0000{i}.jsonl" for i in range(3)
  ]
  assert [p.id for p in first] == list(range(10))
  monkeypatch.setattr(generation, "greedy", lambda *_: pytest.fail("asked again"))
  again = generation.stored_answers(tmp_path, asker, Take(source, 10), 4, 2, 0.0, "test")
  assert again == first


def test_work_in_flight_overlaps_and_comes_back_in_order():
  """Two items wait for each other; a third is not begun before one of them has ended."""
  both, working, most = threading.Barrier(2, timeout=60), [], []

  def work(item):
    working.append(item)
    most.append(len(working))
    if item < 2:
      both.wait()
    time.sleep(0.01 * (5 - item))
    working.remove(item)
    return item

  assert list(generation.in_order(work, range(5), 2)) == [0, 1, 2, 3, 4]
  assert max(most) == 2


def test_what_was_read_before_an_error_is_worked_on_first():
  def items():
    yield from range(3)
    raise KeyError("unreadable")

  found = []
  with pytest.raises(KeyError, match="unreadable"):
    for answer in generation.in_order(lambda item: item + 10, items(), 2):
      found.append(answer)
  assert found == [10, 11, 12]


def test_an_error_of_the_work_ends_it_there():
  def work(item):
    return 1 // item

  results = generation.in_order(work, [1, 1, 0, 1], 2)
  assert [next(results), next(results)] == [1, 1]
  with pytest.raises(ZeroDivisionError):
    next(results)


def test_a_resumed_run_counts_the_pictures_that_were_broken_before(asker, tmp_path, monkeypatch):
  class Source:
    """Every third picture is torn."""

    def __len__(self):
      return 6

    def __getitem__(self, index):
      if index % 3 == 0:
        raise BadRecordError(BadRecord("file", index + 1, "torn"))
      return index

    def place(self, index):
      return "file", index + 1

  monkeypatch.setattr(BatchGenerator, "encode", lambda _, example: example)
  monkeypatch.setattr(
    BatchGenerator, "answer", lambda _, rows, ids: [prediction(i) for i in ids if i >= 0]
  )
  whole = generation.stored_answers(tmp_path / "whole", asker, Source(), 2, 1, 0.4, "test")
  assert [p.id for p in whole] == [1, 2, 4, 5]
  with pytest.raises(TooManyBadRecords):
    generation.stored_answers(tmp_path / "parts", asker, Source(), 2, 1, 0.2, "test")
  assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == ["part-00000.jsonl"]
  with pytest.raises(TooManyBadRecords):
    generation.stored_answers(tmp_path / "parts", asker, Source(), 2, 1, 0.2, "test")
  assert generation.stored_answers(tmp_path / "parts", asker, Source(), 2, 1, 0.4, "test") == whole


def prediction(id):
  words = dict(caption="", relation="left of", text="", truncated=False)
  return Prediction(
    id=id, label=1, verdict=1, boxes_true={}, generated_tokens=1, prompt_tokens=1, **words
  )


def test_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  with pytest.raises(UsageError, match="4 processes see each other's devices"):
    generation.check_batch(None, None)
