import math

import numpy as np
import PIL.Image
import pytest
import torch

from spatial_vlm.processor.bicubic import keys_kernel, resize


def _torch(pixels, height, width, dtype=torch.uint8):
  image = torch.tensor(pixels).permute(2, 0, 1)[None].contiguous().to(dtype)
  image = torch.nn.functional.interpolate(image, (height, width), mode="bicubic", antialias=True)
  return image.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()


def _images(count):
  """Noise and, where rounding and clipping show most, black and white."""
  rng = np.random.default_rng(0)
  for n in range(count):
    sizes = np.exp(rng.uniform(math.log(2), math.log(500), 4)).round().astype(int)
    height, width, *target = map(int, sizes)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    yield (pixels if n % 2 else np.where(pixels > 127, 255, 0).astype(np.uint8)), target


def test_equals_pytorch_value_for_value():
  for pixels, (height, width) in _images(150):
    np.testing.assert_array_equal(resize(pixels, height, width), _torch(pixels, height, width))


def test_photographs_equal_pytorch_value_for_value(photographs):
  for pixels in photographs.values():
    for height, width in ((224, 320), (768, 1024), (pixels.shape[0], 96), (96, pixels.shape[1])):
      np.testing.assert_array_equal(resize(pixels, height, width), _torch(pixels, height, width))


def test_pillow_and_floating_point_do_not_equal_it(photographs):
  """Why neither is used: Pillow differs by at least 1 or 2 of 255, floating point (PyTorch on GPUs) by far more."""
  pillow, floating = [], []
  for pixels in [*photographs.values(), *(np.where(p > 127, 255, 0) for p in photographs.values())]:
    pixels = pixels.astype(np.uint8)
    for height, width in ((96, 128), (640, 768)):
      got = resize(pixels, height, width).astype(int)
      bicubic = PIL.Image.fromarray(pixels).resize((width, height), PIL.Image.Resampling.BICUBIC)
      pillow.append(np.abs(got - np.asarray(bicubic)).max())
      floating.append(np.abs(got - _torch(pixels, height, width, torch.float32)).max())
  assert 1 <= max(pillow) <= 2
  assert 10 < max(floating)


def test_the_same_size_returns_the_same_image(photographs):
  pixels = photographs["chelsea"]
  np.testing.assert_array_equal(resize(pixels, *pixels.shape[:2]), pixels)


@pytest.mark.parametrize(("x", "value"), [(0, 1), (1, 0), (2, 0), (0.5, 0.5625), (-1.5, -0.0625)])
def test_kernel_of_keys(x, value):
  assert keys_kernel(np.array(float(x))) == value
