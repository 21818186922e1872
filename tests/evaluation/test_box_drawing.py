import numpy as np
import PIL.Image

from spatial_vlm.evaluation.box_drawing import draw_boxes


def test_boxes_are_drawn_at_their_coordinates():
  image = PIL.Image.new("RGB", (100, 50), "black")
  drawn = np.asarray(draw_boxes(image, {"mug": (500, 200, 900, 800)}))
  assert drawn.shape == (250, 500, 3)
  rows, columns = np.nonzero((drawn == (0, 114, 178)).all(axis=-1))  # the first colour
  assert columns.min() == 250 and columns.max() == 450
  assert rows.max() == 200
  assert (drawn[195:, 260:440] == 0).all(axis=-1)[:3].all()
