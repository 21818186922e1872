"""Which records share a batch or a row: none lost, none too large, little padding."""

import collections

import numpy as np
import pytest

from spatial_vlm.config import read_preset
from spatial_vlm.data import batch_plan
from spatial_vlm.data.batch_plan import bucketed, largest, packed, padding, shuffled, smallest
from spatial_vlm.data.mixing import mixed_order
from spatial_vlm.processor.chat import Size, total_size
from spatial_vlm.processor.image import ImageSettings, smart_resize

SHAPES = [Size(32, 64), Size(96, 64), Size(128, 256)]
BATCHINGS = pytest.mark.parametrize("arrange", [shuffled, bucketed, packed])


def random_sizes(count, seed=0):
  rng = np.random.default_rng(seed)
  tokens, patches = rng.integers(8, 129, count), 4 * rng.integers(0, 65, count)
  return [Size(*map(int, size)) for size in zip(tokens, patches, strict=True)]


@BATCHINGS
@pytest.mark.parametrize("count, batch_size", [(500, 8), (7, 8), (1, 1), (200, 3)])
def test_every_record_is_planned_as_often_as_it_appears_in_the_order(arrange, count, batch_size):
  sizes = random_sizes(count)
  order = mixed_order([range(count)], [1.0], epochs=3, seed=1)
  plan = arrange(order, sizes, SHAPES, batch_size)
  numbers = [number for batch in plan for row in batch.rows for number in row]
  assert collections.Counter(numbers) == collections.Counter(order)
  assert all(len(batch.rows) == batch_size for batch in plan)
  assert all(() not in batch.rows for batch in plan[:-1])  # only the last may lack rows
  assert plan[-1].rows[0]
  assert arrange(order, sizes, SHAPES, batch_size) == plan


@BATCHINGS
def test_every_row_fits_in_its_shape(arrange):
  sizes = random_sizes(500)
  for shape, rows in arrange(range(500), sizes, SHAPES, 8):
    assert shape in SHAPES
    assert all(shape.holds(total_size(sizes[n] for n in row)) for row in rows)
    assert arrange is packed or all(len(row) <= 1 for row in rows)


def test_shuffled_keeps_the_order_and_takes_the_smallest_shape():
  sizes = [Size(32, 64), Size(30, 0), Size(33, 4), Size(8, 8), Size(8, 65)]
  assert shuffled([3, 1, 0, 2, 4], sizes, SHAPES, 2) == [
    (Size(32, 64), ((3,), (1,))),
    (Size(96, 64), ((0,), (2,))),
    (Size(128, 256), ((4,), ())),
  ]


def test_bucketed_batches_are_of_one_shape_but_for_what_is_left_at_the_end():
  sizes = random_sizes(1000)
  plan = bucketed(range(1000), sizes, SHAPES, 8)
  left = len(SHAPES) * 8 // 8
  for shape, rows in plan[:-left]:
    assert all(smallest(SHAPES, [sizes[n]]) == shape for row in rows for n in row)
  shapes = [shape for shape, _ in plan[:-left]]
  assert {*shapes[:40]} == {*shapes[-40:]} == {*shapes} and len({*shapes}) > 1  # they alternate
  # Records come in the order given, within each shape.
  for shape in {*shapes}:
    numbers = [n for s, rows in plan[:-left] if s == shape for row in rows for n in row]
    assert numbers == sorted(numbers)


def test_leftover_records_are_batched_with_smaller_ones():
  sizes = [Size(30, 64)] * 3 + [Size(90, 64)] * 2 + [Size(120, 64)]
  assert bucketed(range(6), sizes, SHAPES, 4) == [
    (SHAPES[2], ((5,), (3,), (4,), (0,))),
    (SHAPES[0], ((1,), (2,), (), ())),
  ]


def test_a_record_goes_to_the_fullest_row_with_room(monkeypatch):
  monkeypatch.setattr(batch_plan, "OPEN_ROWS", 2)
  shape = Size(10, 100)
  tokens_patches = [(6, 0), (7, 0), (3, 0), (4, 0), (9, 0), (8, 0), (1, 100)]
  sizes = [Size(*size) for size in tokens_patches]
  # 7 + 3 and 6 + 4 are full; a third open row closes the fullest, the oldest first; 1 token, but all of the patches
  plan = packed(range(7), sizes, [shape], 1)
  assert [batch.rows for batch in plan] == [
    ((0, 3),),
    ((1, 2),),
    ((4, 6),),
    ((5,),),
  ]


def test_a_records_displacement_is_bounded_by_the_open_rows():
  """The order stays random locally, and the order of the epochs globally."""
  sizes = random_sizes(2000)
  plan = packed(range(2000), sizes, SHAPES, 1)
  numbers = np.array([number for batch in plan for row in batch.rows for number in row])
  assert np.median(np.abs(numbers - np.arange(2000))) < 2 * batch_plan.OPEN_ROWS


def test_the_largest_shape_bounds_all_others():
  assert largest(SHAPES) == SHAPES[2] == largest(SHAPES[::-1])
  with pytest.raises(ValueError, match="holds all others"):
    largest([Size(32, 64), Size(64, 32)])


def test_padding_is_the_share_of_unfilled_slots():
  sizes = [Size(30, 64), Size(8, 0), Size(20, 60)]
  plan = shuffled(range(3), sizes, [Size(32, 64)], 2)
  assert padding(plan, sizes) == {
    "token": (4 * 32 - 58, 4 * 32),
    "patch": (4 * 64 - 124, 4 * 64),
  }


COCO = ImageSettings(16, 2, 2, 65536, 16777216, (0.5,) * 3, (0.5,) * 3)
"""Qwen3-VL-8B's patches."""
PHOTOGRAPHS = {
  (480, 640): 0.50,
  (640, 480): 0.18,
  (427, 640): 0.12,
  (640, 427): 0.05,
  (375, 500): 0.06,
  (500, 375): 0.03,
  (426, 640): 0.04,
  (612, 612): 0.02,
}
"""(height, width) and about how frequent it is in COCO."""


def vsr_like_sizes(count, seed):
  """Statements on COCO's photographs: about 40 tokens of question, 200–450 of answer, and the image's."""
  rng = np.random.default_rng(seed)
  kinds = rng.choice(len(PHOTOGRAPHS), count, p=list(PHOTOGRAPHS.values()))
  texts = rng.integers(30, 51, count) + rng.integers(200, 451, count)
  sizes = []
  for kind, text in zip(kinds, texts.tolist(), strict=True):
    height, width = smart_resize(*list(PHOTOGRAPHS)[kind], COCO)
    patches = height * width // COCO.patch_size**2
    sizes.append(Size(text + patches // 4, patches))
  return sizes


def shares(plan, sizes):
  return [padded / slots for padded, slots in padding(plan, sizes).values()]


@pytest.mark.parametrize("seed", [0, 1])
def test_packing_wastes_less_than_a_tenth_on_sizes_like_vsr_s(seed):
  sizes = vsr_like_sizes(7680, seed)
  order = mixed_order([range(len(sizes))], [1.0], epochs=1, seed=seed)
  (shape,) = read_preset("configs/sft.py:8b").data.shapes
  found = shares(packed(order, sizes, [Size(*shape)], 32), sizes)
  assert max(found) < 0.10, found
  # One conversation a row, padded to one shape, wastes more than a third.
  assert max(shares(shuffled(order, sizes, [Size(1024, 2048)], 32), sizes)) > 0.33


def test_bucketing_wastes_less_than_a_tenth_on_sizes_like_vsr_s():
  sizes = vsr_like_sizes(7680, 0)
  order = mixed_order([range(len(sizes))], [1.0], epochs=1, seed=0)
  shapes = [Size(t, p) for p in (768, 1088, 1200, 1472) for t in (544, 608, 672, 736, 864)]
  assert max(shares(bucketed(order, sizes, shapes, 32), sizes)) < 0.10
