"""Images of scenes."""

import numpy as np
import pytest

from spatial_vlm.data.scenes.render import (
  SHAPES,
  TEXTURES,
  Background,
  Scene,
  SceneObject,
  covers,
  render,
)

FLAT = Background("flat", (80, 80, 80), 0.0, 100.0, 0)


def differs_from_background(image):
  return np.abs(image.astype(int) - 80).max(-1) > 40


@pytest.mark.parametrize("image_size", [50, 64, 448])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_and_nothing_else(shape, image_size):
  box = (220, 400, 620, 520)
  image = render(Scene((SceneObject("white", shape, box),), FLAT), image_size)
  assert image.shape == (image_size, image_size, 3) and image.dtype == np.uint8
  rows, columns = np.nonzero(differs_from_background(image))
  found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
  # The tips of triangles and diamonds cover less than half of the outermost pixels.
  np.testing.assert_allclose(found, np.array(box) * image_size / 1000, atol=2.1)


@pytest.mark.parametrize(
  ("shape", "share"),
  [
    ("circle", np.pi / 4),
    ("square", 1),
    ("bar", 1),
    ("triangle", 1 / 2),
    ("diamond", 1 / 2),
    ("cross", 5 / 9),
  ],
)
def test_shapes_cover_their_area(shape, share):
  axis = (np.arange(400) + 0.5) / 200 - 1
  inside = covers(shape, axis[None, :], axis[:, None])
  assert inside.mean() == pytest.approx(share, abs=0.01)


def test_triangles_point_upwards():
  assert covers("triangle", np.array(0.9), np.array(0.95))
  assert not covers("triangle", np.array(0.9), np.array(-0.95))


def test_later_objects_hide_earlier_ones():
  back = SceneObject("red", "square", (200, 200, 800, 800))
  front = SceneObject("blue", "square", (400, 400, 600, 600))
  assert render(Scene((back, front), FLAT))[32, 32].argmax() == 2
  assert render(Scene((front, back), FLAT))[32, 32].argmax() == 0


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_are_faint_and_deterministic(texture):
  scene = Scene((), Background(texture, (80, 90, 100), 0.7, 120.0, 5))
  image = render(scene)
  np.testing.assert_array_equal(image, render(scene))
  assert np.abs(image.astype(int) - [80, 90, 100]).max() <= 18
  assert (image.std((0, 1)).max() > 1) == (texture != "flat")


def test_brightness_scales_the_image():
  image = render(Scene((), FLAT, brightness=0.5))
  assert (image == 40).all()


def test_boxes_are_in_scan_order():
  objects = (
    SceneObject("red", "bar", (300, 0, 400, 80)),
    SceneObject("blue", "bar", (100, 500, 400, 580)),
    SceneObject("green", "bar", (100, 200, 400, 280)),
  )
  assert list(Scene(objects, FLAT).boxes) == ["green bar", "blue bar", "red bar"]


def test_unknown_shapes_and_textures_are_named():
  with pytest.raises(ValueError, match="'star'"):
    covers("star", np.zeros(1), np.zeros(1))
  with pytest.raises(ValueError, match="'tartan'"):
    render(Scene((), Background("tartan", (0, 0, 0), 0.0, 1.0, 0)))
