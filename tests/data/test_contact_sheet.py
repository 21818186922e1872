"""The contact sheet."""

import dataclasses

import numpy as np
import pytest

from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.scenes.source import SceneSource


def test_sheet_has_a_tile_for_each_example():
  source = SceneSource("train", 0, 8)
  sheet = contact_sheet(list(source)[:7], columns=3)
  tile_width, tile_height = (sheet.width - 18) // 3, (sheet.height - 18) // 3
  pixels = np.asarray(sheet).astype(int)
  filled = [
    pixels[
      row * tile_height + 18 : (row + 1) * tile_height,
      column * tile_width + 18 : (column + 1) * tile_width,
    ].std()
    > 5
    for row in range(3)
    for column in range(3)
  ]
  assert filled == [True] * 7 + [False] * 2


def test_boxes_are_drawn_in_the_colours_of_subject_and_object():
  example = SceneSource("train", 0, 2, image_size=300)[0]
  pixels = np.asarray(contact_sheet([example], columns=1))
  for color in ((255, 140, 26), (0, 214, 230)):
    assert (pixels == color).all(-1).sum() > 300


@pytest.mark.parametrize(("height", "width"), [(256, 256), (50, 200), (1200, 300), (640, 160)])
def test_an_image_keeps_its_aspect_ratio_and_its_boxes_scale_with_it(height, width):
  """The object, drawn in one colour, fills its box; the rest of the tile keeps the background."""
  example = SceneSource("train", 0, 2)[0]
  image = np.full((height, width, 3), (0, 0, 255), np.uint8)
  y1, y2, x1, x2 = height // 4, 7 * height // 10, width // 5, 4 * width // 5
  image[y1:y2, x1:x2] = (255, 0, 0)
  box = (1000 * x1 // width, 1000 * y1 // height, 1000 * x2 // width, 1000 * y2 // height)
  record = dataclasses.replace(example.record, subj="it", obj=None)

  def tile(boxes):
    shown = dataclasses.replace(example, record=record, image=image, boxes=boxes)
    return np.asarray(contact_sheet([shown], columns=1)).astype(int)[18 : 18 + 256, 18 : 18 + 256]

  def extent(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])

  plain = tile({})
  is_image = plain[..., 2] - plain[..., 0] > 100
  is_object = plain[..., 0] - plain[..., 2] > 100
  left, top, right, bottom = extent(is_image | is_object)
  assert max(right - left, bottom - top) == 256
  assert (right - left) * height == pytest.approx(width * (bottom - top), abs=max(height, width))
  np.testing.assert_allclose((left + right, top + bottom), 256, atol=1)
  orange = (tile({"it": box}) == (255, 140, 26)).all(-1)
  orange[: max(extent(is_object)[1] - 2, 0)] = False  # the tag above the box
  np.testing.assert_allclose(extent(orange)[[0, 2, 3]], extent(is_object)[[0, 2, 3]], atol=3)
