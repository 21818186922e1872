"""Order, resumption, sharing and broken records of the input pipeline."""

import json
import logging

import numpy as np
import pytest

from spatial_vlm.data.batch_plan import PlannedBatch
from spatial_vlm.data.pipeline import (
  EpochOrder,
  batches,
  ordered_batches,
  planned_batches,
  prompt_order,
)
from spatial_vlm.data.reading import ReadOptions, Shard
from spatial_vlm.data.records import BadRecord, BadRecordError, TooManyBadRecords, UnusableRecord
from spatial_vlm.data.skipped_records import own_state, skipped
from spatial_vlm.processor.image import UnreadableImage


class Numbers:
  """Records 0 … count−1. Those in `unreadable` raise as JsonlSource does."""

  def __init__(self, count, unreadable=()):
    self.count, self.unreadable = count, frozenset(unreadable)

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    if not 0 <= index < self.count:
      raise IndexError(index)
    if index in self.unreadable:
      raise BadRecordError(BadRecord("numbers.jsonl", index + 1, "image is damaged"))
    return index

  def place(self, index):
    return "numbers.jsonl", index + 1


def encode(record):
  return {"id": record, "pixels": np.full(3, record)}


def collate(rows):
  return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def collate_ordered(rows, ids):
  return collate(rows) | {"ids": ids}


def make(source, batch_size=4, encode=encode, seed=0, epochs=None, shuffle=True, **options):
  order = EpochOrder(batch_size, seed, epochs, shuffle)
  return batches(source, encode, collate, order, ReadOptions(**options))


def ordered(source, batch_size, start=0, skipped=(), **options):
  options = ReadOptions(**options)
  return ordered_batches(
    source, encode, collate_ordered, batch_size, options, start=start, skipped=skipped
  )


def numbers(iterator, count=None):
  taken = iterator if count is None else (next(iterator) for _ in range(count))
  return [batch["id"].tolist() for batch in taken]


def flat(rows):
  return [number for row in rows for number in row]


def test_each_epoch_is_another_permutation():
  order = flat(numbers(make(Numbers(12), epochs=3)))
  epochs = [order[start : start + 12] for start in (0, 12, 24)]
  assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in [*epochs, range(12)]}) == 4


def test_order_depends_on_the_seed_and_on_nothing_else():
  reference = numbers(make(Numbers(50), seed=3), 40)
  assert numbers(make(Numbers(50), seed=3, prefetch=0), 40) == reference
  assert numbers(make(Numbers(50), seed=3, workers=3), 40) == reference
  assert numbers(make(Numbers(50), seed=4), 40) != reference


def test_adjacent_seeds_do_not_share_epochs():
  """Grain shuffles epoch e with seed + e; a seed used raw would make epoch 1 of seed 0 epoch 0 of seed 1."""
  first = {seed: [prompt_order(seed, 100)(c) for c in range(100)] for seed in range(8)}
  second = {seed: [prompt_order(seed, 100)(100 + c) for c in range(100)] for seed in range(8)}
  epochs = [tuple(epoch) for epoch in [*first.values(), *second.values()]]
  assert len(set(epochs)) == len(epochs)


def test_without_shuffling_the_order_is_the_source_s():
  assert flat(numbers(make(Numbers(5), batch_size=2, shuffle=False, epochs=2))) == [
    *range(5),
    *range(5),
  ]


def test_epochs_are_rounded_down_to_whole_batches():
  assert (
    len(numbers(make(Numbers(10), batch_size=4, epochs=3)))
    == EpochOrder(4, 0, 3).num_batches(10)
    == 7
  )
  with pytest.raises(ValueError, match="3 records × 1 epochs do not fill one batch of 4"):
    make(Numbers(3), epochs=1)


@pytest.mark.parametrize("prefetch, workers", [(2, 0), (0, 0), (3, 2)])
def test_resumed_at_every_position_equals_uninterrupted(prefetch, workers):
  def start():
    source = Numbers(7, unreadable=(2,))
    return make(
      source, batch_size=3, prefetch=prefetch, workers=workers, epochs=5, max_bad_share=0.2
    )

  iterator = start()
  states, expected = [iterator.get_state()], []
  for batch in iterator:
    expected.append(batch["id"].tolist())
    states.append(json.loads(json.dumps(iterator.get_state())))
  assert len(expected) == EpochOrder(3, 0, 5).num_batches(7) and 2 not in flat(expected)
  for position, state in enumerate(states):
    resumed = start()
    resumed.set_state(state)
    assert numbers(resumed) == expected[position:]
    assert resumed.get_state() == states[-1]


def test_state_goes_back_in_a_running_iterator():
  iterator = make(Numbers(30))
  next(iterator)
  state = iterator.get_state()
  after = numbers(iterator, 5)
  iterator.set_state(state)
  assert numbers(iterator, 5) == after


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_batch_exactly(count):
  whole = numbers(make(Numbers(31), batch_size=6, epochs=4))
  parts = [
    numbers(make(Numbers(31), batch_size=6, epochs=4, shard=Shard(i, count))) for i in range(count)
  ]
  assert [flat(rows) for rows in zip(*parts, strict=True)] == whole
  assert {len(row) for part in parts for row in part} == {6 // count}


def test_batch_must_be_a_multiple_of_the_processes():
  with pytest.raises(ValueError, match="batch_size is 4; .* 3 processes"):
    make(Numbers(31), batch_size=4, shard=Shard(0, 3))


def test_broken_records_are_skipped_counted_and_logged_once(caplog):
  def fussy(record):
    if record == 9:
      raise UnreadableImage("nine.png is no image")
    if record == 5:
      raise UnusableRecord("five is too long")
    return encode(record)

  iterator = make(Numbers(20, unreadable=(11,)), encode=fussy, epochs=4, max_bad_share=0.15)
  with caplog.at_level(logging.WARNING):
    order = flat(numbers(iterator))
  assert len(order) == 80  # replaced from a fifth pass
  assert not {5, 9, 11} & set(order)
  assert all(order.count(number) >= 4 for number in set(range(20)) - {5, 9, 11})
  bad = skipped(json.loads(json.dumps(iterator.get_state())))
  assert set(bad) == {5, 9, 11}
  assert str(bad[11]) == "numbers.jsonl:12: image is damaged"
  assert str(bad[9]) == "numbers.jsonl:10: nine.png is no image"
  assert str(bad[5]) == "numbers.jsonl:6: five is too long"
  assert sum("skipped" in record.message for record in caplog.records) == 3
  assert "skipped numbers.jsonl:12: image is damaged" in caplog.text


@pytest.mark.parametrize("prefetch", [0, 2])
def test_too_many_broken_records_stop_the_run(prefetch):
  unreadable = range(0, 100, 10)
  make_it = {"batch_size": 5, "prefetch": prefetch, "epochs": 2}
  assert len(numbers(make(Numbers(100, unreadable), max_bad_share=0.10, **make_it))) == 40
  with pytest.raises(TooManyBadRecords, match="allowed are 9.0%.*\n.*image is damaged"):
    numbers(make(Numbers(100, unreadable), max_bad_share=0.09, **make_it))


def test_a_source_of_broken_records_alone_is_an_error():
  with pytest.raises(TooManyBadRecords):
    next(make(Numbers(3, range(3)), batch_size=1, max_bad_share=1.0))


def test_other_errors_are_not_swallowed():
  def slip(record):
    raise ValueError("a slip in the code")

  with pytest.raises(ValueError, match="a slip in the code") as caught:
    next(make(Numbers(8), encode=slip))
  assert caught.type is ValueError


def test_empty_source_is_an_error():
  with pytest.raises(ValueError, match="no records"):
    make(Numbers(0))


def test_prompt_order_is_a_permutation_per_epoch_at_any_cursor():
  order = prompt_order(7, 13)
  stream = [order(cursor) for cursor in range(39)]
  assert all(sorted(stream[start : start + 13]) == list(range(13)) for start in (0, 13, 26))
  assert stream[:13] != stream[13:26]
  assert [prompt_order(7, 13)(np.int32(cursor)) for cursor in (38, 0, 20)] == [
    stream[38],
    stream[0],
    stream[20],
  ]
  assert prompt_order(7, 1)(5) == 0
  assert sorted(order(10**9 // 13 * 13 + cursor) for cursor in range(13)) == list(range(13))


@pytest.mark.parametrize("count, batch_size", [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_ordered_sees_every_record_once_in_full_batches(count, batch_size):
  seen = list(ordered(Numbers(count), batch_size=batch_size))
  assert all(batch["pixels"].shape == (batch_size, 3) for batch in seen)
  ids = np.concatenate([batch["ids"] for batch in seen])
  assert ids.dtype == np.int32
  assert ids[:count].tolist() == list(range(count))
  assert (ids[count:] == -1).all() and len(ids) - count < batch_size
  for batch in seen:
    real = batch["ids"] >= 0
    np.testing.assert_array_equal(batch["id"][real], batch["ids"][real])


def test_ordered_starts_anywhere():
  seen = list(ordered(Numbers(10), batch_size=4, start=7))
  assert [batch["ids"].tolist() for batch in seen] == [[7, 8, 9, -1]]
  assert list(ordered(Numbers(10), batch_size=4, start=10)) == []
  with pytest.raises(ValueError, match="start is 11; the source has records 0 … 9"):
    list(ordered(Numbers(10), batch_size=4, start=11))


def test_ordered_masks_broken_records_in_their_place():
  source = Numbers(10, unreadable=(0, 1, 2, 6))
  seen = list(ordered(source, batch_size=3, max_bad_share=0.5))
  assert [batch["ids"].tolist() for batch in seen] == [
    [-1, -1, -1],
    [3, 4, 5],
    [-1, 7, 8],
    [9, -1, -1],
  ]
  assert seen[0]["id"].tolist() == [3, 3, 3]
  with pytest.raises(TooManyBadRecords):
    list(ordered(source, batch_size=3, max_bad_share=0.3))


def test_ordered_counts_records_skipped_by_an_earlier_run(caplog):
  source = Numbers(10, unreadable=(0, 1, 6))
  arguments = dict(batch_size=3, start=3, skipped=[0, 1])
  seen = list(ordered(source, **arguments, max_bad_share=0.3))
  assert [batch["ids"].tolist() for batch in seen] == [[3, 4, 5], [-1, 7, 8], [9, -1, -1]]
  assert all(f"skipped numbers.jsonl:{number + 1}: " in caplog.text for number in (0, 1, 6))
  with pytest.raises(TooManyBadRecords):
    list(ordered(source, **arguments, max_bad_share=0.2))


def test_ordered_gives_every_process_the_same_number_of_batches():
  parts = [list(ordered(Numbers(9), batch_size=4, shard=Shard(i, 2))) for i in range(2)]
  assert [batch["ids"].tolist() for batch in parts[0]] == [[0, 1], [4, 5], [8, -1]]
  assert [batch["ids"].tolist() for batch in parts[1]] == [[2, 3], [6, 7], [-1, -1]]


PLAN = [
  PlannedBatch(shape, tuple(rows))
  for shape, rows in [
    ((9, 9), [(0, 1), (2,), (3, 4, 5), (6,)]),
    ((8, 8), [(7,), (8, 0), (1,), (2, 3)]),
    ((9, 9), [(5,), (4,), (), ()]),
  ]
]
PLANNED = [(shape, [list(row) for row in rows]) for shape, rows in PLAN]


def collate_planned(rows, shape):
  return shape, [[record["id"] for record in row] for row in rows]


def follow(source, plan=PLAN, known_bad=(), **options):
  options = ReadOptions(**options)
  return planned_batches(source, encode, collate_planned, plan, options, dict(known_bad))


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_plan_is_followed_and_resumed_exactly(workers, prefetch):
  options = {"workers": workers, "prefetch": prefetch}
  iterator, states, found = follow(Numbers(9), **options), [], []
  for batch in iterator:
    found.append(batch)
    states.append(json.loads(json.dumps(iterator.get_state())))
  assert found == PLANNED
  for done, state in enumerate(states, 1):
    resumed = follow(Numbers(9), workers=3 - workers)
    resumed.set_state(state)
    assert list(resumed) == PLANNED[done:]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_each_planned_batch(count):
  parts = [list(follow(Numbers(9), shard=Shard(i, count))) for i in range(count)]
  for pieces, (shape, rows) in zip(zip(*parts, strict=True), PLANNED, strict=True):
    assert {piece[0] for piece in pieces} == {shape}
    assert [row for piece in pieces for row in piece[1]] == rows
  with pytest.raises(ValueError, match="batch_size is 4; .* 3 processes"):
    follow(Numbers(9), shard=Shard(0, 3))


def test_a_broken_record_leaves_its_place_in_the_plan_empty(caplog):
  known = {9: BadRecord("numbers.jsonl", 10, "its header is torn")}
  options = {"plan": PLAN[:2], "max_bad_share": 0.3, "known_bad": known}
  iterator = follow(Numbers(10, unreadable=(2, 4)), **options)
  first = next(iterator)
  assert first == ((9, 9), [[0, 1], [], [3, 5], [6]])
  state = json.loads(json.dumps(iterator.get_state()))
  assert {number: str(bad) for number, bad in skipped(state).items()} == {
    9: "numbers.jsonl:10: its header is torn",
    2: "numbers.jsonl:3: image is damaged",
    4: "numbers.jsonl:5: image is damaged",
  }
  caplog.clear()
  resumed = follow(Numbers(10, unreadable=(2, 4)), **options)
  resumed.set_state(state)
  assert next(resumed) == next(iterator) == ((8, 8), [[7], [8, 0], [1], [3]])
  assert not caplog.messages, "what was reported is not reported again"
  with pytest.raises(TooManyBadRecords, match="3 of 10 records"):
    list(follow(Numbers(10, unreadable=(2, 4)), **{**options, "max_bad_share": 0.25}))


def processes(make_one, count):
  """(iterators, states) of as many processes after two batches."""
  iterators = [make_one(Shard(index, count)) for index in range(count)]
  for iterator in iterators:
    next(iterator), next(iterator)
  return [json.loads(json.dumps(iterator.get_state())) for iterator in iterators]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2), (2, 2)])
def test_a_plan_resumes_on_another_number_of_processes(before, after):
  def make_one(shard):
    return follow(Numbers(9, unreadable=(4, 7)), max_bad_share=0.5, shard=shard)

  states = processes(make_one, before)
  uninterrupted = make_one(Shard())
  *_, expected = uninterrupted
  rows = []
  for index in range(after):
    iterator = make_one(Shard(index, after))
    iterator.set_state(own_state(states, Shard(index, after)))
    (batch,) = iterator
    rows += batch[1]
    if after != before:
      assert skipped(iterator.get_state()) == skipped(uninterrupted.get_state())
  assert rows == expected[1]


def test_a_stream_resumes_elsewhere_unless_skipped_records_were_replaced():
  def make_one(shard):
    return make(Numbers(32), shard=shard)

  state = own_state(processes(make_one, 2), Shard())
  iterator = make_one(Shard())
  iterator.set_state(state)
  assert numbers(iterator, 2) == numbers(make_one(Shard()), 4)[2:]
  broken = processes(
    lambda shard: make(Numbers(32, range(0, 32, 2)), max_bad_share=1, shard=shard), 2
  )
  assert own_state(broken, Shard(1, 2)) == broken[1]
  with pytest.raises(ValueError, match="2 processes have read this far and skipped"):
    own_state(broken, Shard())
