"""Several sources read as one, by weight."""

import numpy as np
import pytest

from spatial_vlm.data.mixing import Joined, mixed_order
from spatial_vlm.data.pipeline import prompt_order


class Letters:
  def __init__(self, text, file):
    self.text, self.file = text, file

  def __len__(self):
    return len(self.text)

  def __getitem__(self, index):
    return self.text[index]

  def place(self, index):
    return self.file, index + 1


def test_joined_sources_are_read_by_one_number():
  joined = Joined([Letters("abc", "a.jsonl"), Letters("", "none.jsonl"), Letters("xy", "x.jsonl")])
  assert len(joined) == 5 and "".join(joined[i] for i in range(5)) == "abcxy"
  assert [joined.place(i) for i in (0, 2, 3, 4)] == [
    ("a.jsonl", 1),
    ("a.jsonl", 3),
    ("x.jsonl", 1),
    ("x.jsonl", 2),
  ]
  assert joined.numbers() == [range(0, 3), range(3, 3), range(3, 5)]


def test_one_source_is_read_in_the_order_of_the_pipeline():
  order = prompt_order(5, 40)
  assert mixed_order([range(40)], [3.0], epochs=2, seed=5) == [order(c) for c in range(80)]


def test_shares_are_exact_from_the_beginning_to_any_point():
  sources, weights = [range(300), range(300, 340), range(340, 1000)], [1.0, 0.5, 0.25]
  order = np.array(mixed_order(sources, weights, epochs=2, seed=0))
  assert len(order) == 600 + 300 + 150
  for numbers, weight in zip(sources, weights, strict=True):
    met = np.cumsum((order >= numbers.start) & (order < numbers.stop))
    expected = np.arange(1, len(order) + 1) * weight / sum(weights)
    assert np.abs(met - expected).max() <= 1


def test_a_source_is_exhausted_before_it_repeats_in_another_order():
  order = mixed_order([range(300), range(300, 340)], [1.0, 0.5], epochs=2, seed=0)
  second = [number for number in order if number >= 300]
  passes = [second[start : start + 40] for start in range(0, 280, 40)]
  assert all(sorted(each) == list(range(300, 340)) for each in passes)
  assert len({tuple(each) for each in passes}) == 7
  first = [number for number in order if number < 300]
  assert sorted(first[:300]) == sorted(first[300:]) == list(range(300))


def test_sources_of_equal_size_have_different_orders():
  order = mixed_order([range(50), range(50, 100)], [1.0, 1.0], epochs=1, seed=0)
  assert [n for n in order if n < 50] != [n - 50 for n in order if n >= 50]
  assert order != mixed_order([range(50), range(50, 100)], [1.0, 1.0], epochs=1, seed=1)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, float("inf")]])
def test_invalid_weights_are_refused(weights):
  with pytest.raises(ValueError, match="weights are .* positive one for each of the 2 sources"):
    mixed_order([range(3), range(3, 5)], weights, epochs=1, seed=0)


def test_a_source_without_usable_records_is_refused():
  with pytest.raises(ValueError, match="no records"):
    mixed_order([range(3), []], [1.0, 1.0], epochs=1, seed=0)
