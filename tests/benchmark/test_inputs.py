"""Random rows: of the form that the model expects."""

import numpy as np
import pytest

from spatial_vlm.benchmark.inputs import RowShape, random_batch, random_prompts
from spatial_vlm.model.config import PRESETS

MODEL = PRESETS["tiny"]
SHAPE = RowShape(tokens=101, images=2, grid=(4, 8))


def test_a_row_packs_conversations_and_pads():
  batch = random_batch(MODEL, 3, SHAPE, seed=0)
  assert batch.tokens.shape == (3, 101) and batch.positions.shape == (3, 101, 3)
  assert batch.segments[0].tolist() == [1] * 50 + [2] * 50 + [0]
  assert batch.vision.patches.shape == (3, 64, MODEL.vision.patch_dim)
  assert batch.vision.segments[0].tolist() == [1] * 32 + [2] * 32
  visual = batch.tokens == MODEL.image_token_id
  assert visual.sum(axis=1).tolist() == [16] * 3
  text = ~visual & (batch.segments > 0)
  special = text & (batch.tokens >= MODEL.vision_start_token_id)
  assert special.sum() == 3 * 2 * 2  # a start and an end around each image


def test_the_text_after_an_image_is_to_be_predicted():
  batch = random_batch(MODEL, 1, SHAPE, seed=0)
  start = 4 + 1 + 8  # text, the image's start, the image
  of_one = np.arange(50) > start - 1
  assert batch.targets[0].tolist() == [*of_one, *of_one, False]


def test_positions_are_those_of_an_image_in_text():
  (row,) = random_batch(MODEL, 1, SHAPE, seed=0).positions
  np.testing.assert_array_equal(row[:50], row[50:100])
  assert row[4].tolist() == [4, 4, 4]  # the image's start
  assert row[5].tolist() == [5, 5, 5] and row[12].tolist() == [5, 6, 8]  # first and last of 2 × 4
  assert row[13].tolist() == [9, 9, 9] and row[49].tolist() == [45, 45, 45]


def test_rows_differ_and_repeat_with_the_seed():
  first, again, other = (random_prompts(MODEL, 2, SHAPE, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert (first.tokens != other.tokens).any() and (first.tokens[0] != first.tokens[1]).any()
  assert first.ids.tolist() == [0, 1] and first.label.tolist() == [0, 1]


@pytest.mark.parametrize("images", [1, 3])
def test_the_least_tokens_leave_one_after_each_image(images):
  shape = SHAPE._replace(images=images)
  least = shape._replace(tokens=shape.least_tokens(MODEL))
  batch = random_batch(MODEL, 1, least, seed=0)
  assert batch.targets.sum() == images + images  # the image's end counts too
