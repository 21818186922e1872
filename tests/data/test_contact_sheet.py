"""The contact sheet."""

import numpy as np

from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.scenes import SceneSource


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


def test_boxes_stand_out_in_the_colours_of_subject_and_object():
  example = SceneSource("train", 0, 2, image_size=300)[0]
  pixels = np.asarray(contact_sheet([example], columns=1))
  for color in ((255, 140, 26), (0, 214, 230)):
    assert (pixels == color).all(-1).sum() > 300
