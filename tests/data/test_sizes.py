"""Sizes of conversations, without decoding their images."""

import io

import numpy as np
import PIL.Image
import pytest

from spatial_vlm.data import conversations, sizes
from spatial_vlm.data.conversations import Conversation, ConversationSource
from spatial_vlm.processor.chat import Processor, encode, measure
from spatial_vlm.processor.image import UnreadableImage, open_image


def encoded(height, width, format, orientation=None):
  file = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
  exif = PIL.Image.Exif()
  if orientation:
    exif[0x0112] = orientation
  PIL.Image.fromarray(pixels).save(file, format, exif=exif)
  return file.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 5, 6, 8])
def test_image_size_is_that_of_the_upright_image(format, orientation):
  data = encoded(40, 96, format, orientation)
  upright = open_image(data)
  assert sizes.image_size(data, "a.jpg") == (upright.height, upright.width)


def test_pixels_are_not_decoded():
  """The header is enough: damage after it is noticed when the image is decoded."""
  data = encoded(400, 300, "JPEG")[:900]
  assert sizes.image_size(data, "a.jpg") == (400, 300)
  with pytest.raises(UnreadableImage):
    open_image(data)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(40, 40, "PNG")[:20]])
def test_an_unreadable_header_names_the_image(data):
  with pytest.raises(UnreadableImage, match="cannot read image folder/a.png: "):
    sizes.image_size(data, "folder/a.png")


def test_conversations_are_measured_as_they_are_encoded(nano, tmp_path):
  processor = Processor.from_folder(nano)
  for name, (height, width) in {"a.jpg": (90, 200), "b.jpg": (64, 64)}.items():
    (tmp_path / name).write_bytes(encoded(height, width, "JPEG", 6))
  rows = [Conversation("a.jpg", "Is it red?", "Yes. " * n) for n in (1, 9)]
  frames = [PIL.Image.new("RGB", (90, 50), (40 * n, 0, 0)) for n in range(6)]
  frames[0].save(tmp_path / "c.gif", save_all=True, append_images=frames[1:], duration=300)
  rows += [
    Conversation("b.jpg", "Where?", "Left."),
    Conversation("c.gif", "Where to?", "Left.", "video"),
  ]
  conversations.write(tmp_path / "c.jsonl", rows)
  source = ConversationSource(tmp_path / "c.jsonl", tmp_path, 0.0)
  outlines = sizes.SizedSource(source)
  assert len(outlines) == 4 and outlines.place(2) == source.place(2)
  for index in range(4):
    assert measure(processor, outlines[index]) == encode(processor, source[index]).size
