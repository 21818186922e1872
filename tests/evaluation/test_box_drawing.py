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


def test_lines_and_names_grow_with_the_image():
  """A name at the edge stays inside the image."""
  widths, heights = [], []
  for longer in (600, 2400):
    image = PIL.Image.new("RGB", (longer, longer // 2), "black")
    drawn = np.asarray(draw_boxes(image, {"mug on a long shelf": (900, 500, 990, 900)}))
    colored = (drawn == (0, 114, 178)).all(axis=-1)
    widths.append(colored[longer // 3].sum() / 2)  # of the left and the right line
    name = colored[: longer // 4].any(axis=1)
    heights.append(name.sum())
    assert colored[: longer // 4, -1].any()
  assert widths == [3, 12] and 3.5 < heights[1] / heights[0] < 4.5
