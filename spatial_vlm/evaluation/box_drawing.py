"""Named boxes drawn onto an image."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from spatial_vlm.answers import Box

COLORS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73")
SMALL_PIXELS = 512
"""Images whose longer side is shorter are enlarged."""
LINE_SHARE, FONT_SHARE = 1 / 200, 1 / 36
"""Width of a line and height of the letters, as shares of the longer side."""


def draw_boxes(image: Image.Image, boxes: Mapping[str, Box]) -> Image.Image:
  """Returns the image, enlarged when it is small, with its named boxes; lines and letters grow with it."""
  scale = max(1, SMALL_PIXELS // max(image.size))
  drawn = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
  longer = max(drawn.size)
  line = max(2, round(longer * LINE_SHARE))
  font = ImageFont.load_default(max(11, round(longer * FONT_SHARE)))
  pen = ImageDraw.Draw(drawn)
  for i, (name, (x1, y1, x2, y2)) in enumerate(boxes.items()):
    color = COLORS[i % len(COLORS)]
    left, top = x1 * drawn.width / 1000, y1 * drawn.height / 1000
    pen.rectangle(
      (left, top, x2 * drawn.width / 1000, y2 * drawn.height / 1000), outline=color, width=line
    )
    _write_name(pen, (left, top), name, color, font)
  return drawn


def _write_name(
  pen: ImageDraw.ImageDraw,
  corner: tuple[float, float],
  name: str,
  color: str,
  font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
  """Writes a name above the corner of its box, moved to where the image holds all of it."""
  x1, y1, x2, y2 = pen.textbbox((0, 0), name, font)
  margin = max(2, round((y2 - y1) / 4))
  width, height = x2 - x1 + 2 * margin, y2 - y1 + 2 * margin
  image_width, _ = pen.im.size
  left = max(0, min(corner[0], image_width - width))
  top = max(0, corner[1] - height)
  pen.rectangle((left, top, left + width, top + height), fill=color)
  pen.text((left + margin - x1, top + margin - y1), name, fill="white", font=font)
