"""Named boxes drawn onto an image."""

from collections.abc import Mapping

from PIL import Image, ImageDraw

from spatial_vlm.answers import Box

COLORS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73")


def draw_boxes(image: Image.Image, boxes: Mapping[str, Box]) -> Image.Image:
  """Returns the image, enlarged when it is small, with its named boxes."""
  scale = max(1, 512 // max(image.size))
  drawn = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  pen = ImageDraw.Draw(drawn)
  for i, (name, (x1, y1, x2, y2)) in enumerate(boxes.items()):
    color = COLORS[i % len(COLORS)]
    left, top = x1 * drawn.width / 1000, y1 * drawn.height / 1000
    pen.rectangle(
      (left, top, x2 * drawn.width / 1000, y2 * drawn.height / 1000), outline=color, width=3
    )
    at = (left + 4, max(0, top - 14))
    pen.rectangle(pen.textbbox(at, name), fill=color)
    pen.text(at, name, fill="white")
  return drawn
