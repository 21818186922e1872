"""Contact sheets of examples: image, boxes, statement and label. Images of any shape are shown completely."""

import itertools
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from spatial_vlm.answers import Box
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.data.records import Example, JsonlSource, Record

_SIDE, _MARGIN, _TEXT_HEIGHT = 256, 18, 66
_PAPER, _INK, _QUIET = (250, 250, 248), (28, 30, 34), (150, 152, 156)
_SUBJECT, _OBJECT, _OTHER = (255, 140, 26), (0, 214, 230), (196, 198, 202)
_Frame = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels of a tile."""
_LABELS = {1: ("true", (22, 130, 70)), 0: ("false", (190, 44, 44))}


def sampled(source: JsonlSource, seed: int, count: int) -> list[Example]:
  """Returns up to `count` readable examples in a shuffled order; TooManyBadRecords as the source allows them."""
  read = Reader(source, lambda example: example, source.max_bad_share)
  order = map(prompt_order(seed, len(source)), range(len(source)))
  readable = (example for number in order if (example := read(number)) is not None)
  return list(itertools.islice(readable, count))


def contact_sheet(examples: Sequence[Example], columns: int = 6) -> Image.Image:
  """Draws examples from left to right; the subject's box is orange, the object's cyan, others grey."""
  rows = -(-len(examples) // columns)
  width, height = _SIDE + _MARGIN, _SIDE + _TEXT_HEIGHT + _MARGIN
  sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAPER)
  for index, example in enumerate(examples):
    row, column = divmod(index, columns)
    sheet.paste(_tile(example), (_MARGIN + column * width, _MARGIN + row * height))
  return sheet


def _tile(example: Example) -> Image.Image:
  tile = Image.new("RGB", (_SIDE, _SIDE + _TEXT_HEIGHT), _PAPER)
  frame = _fitted(example.image)
  tile.paste(_resized(example.image, frame), (int(frame[0]), int(frame[1])))
  draw = ImageDraw.Draw(tile)
  record = example.record
  assert isinstance(record, Record)  # a sheet shows statements
  colors = {record.subj: _SUBJECT, record.obj: _OBJECT}
  boxes = {name: _pixels(box, frame) for name, box in example.boxes.items()}
  for name, box in boxes.items():
    _draw_box(draw, box, colors.get(name, _OTHER))
  tags: list[_Frame] = []
  for name, box in boxes.items():
    occupied = [*boxes.values(), box, box, *tags]  # a name must not hide its own object
    tags.append(_draw_tag(draw, name, box, colors.get(name, _OTHER), occupied))
  lines = textwrap.wrap(record.caption, 32, max_lines=2, placeholder=" …")
  for line_number, line in enumerate(lines):
    draw.text((0, _SIDE + 6 + 20 * line_number), line, _INK, _font(16))
  word, color = _LABELS[record.label]
  y = _SIDE + 6 + 20 * len(lines)
  draw.text((0, y), word, color, _font(16), stroke_width=0.5, stroke_fill=color)
  note = f"{record.relation} · {example.id}"
  draw.text((_SIDE, y + 2), note, _QUIET, _font(13), anchor="ra")
  return tile


def _fitted(image: np.ndarray) -> _Frame:
  """Returns the frame of the image: as large as the square allows, centred, on whole pixels."""
  height, width = image.shape[:2]
  scale = _SIDE / max(height, width)
  width, height = max(1, round(width * scale)), max(1, round(height * scale))
  left, top = (_SIDE - width) // 2, (_SIDE - height) // 2
  return left, top, left + width, top + height


def _resized(image: np.ndarray, frame: _Frame) -> Image.Image:
  """Scales small images with visible pixels, and large ones smoothly."""
  small = max(image.shape[:2]) <= _SIDE
  method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
  x1, y1, x2, y2 = frame
  return Image.fromarray(image).resize((int(x2 - x1), int(y2 - y1)), method)


def _draw_box(draw: ImageDraw.ImageDraw, box: _Frame, color: tuple[int, int, int]) -> None:
  x1, y1, x2, y2 = box
  draw.rectangle((x1 - 2, y1 - 2, x2 + 1, y2 + 1), outline=(0, 0, 0))
  draw.rectangle((x1 - 1, y1 - 1, x2, y2), outline=color, width=2)


def _draw_tag(
  draw: ImageDraw.ImageDraw,
  name: str,
  box: _Frame,
  color: tuple[int, int, int],
  occupied: Sequence[_Frame],
) -> _Frame:
  """Writes the name at its box where it hides the least; returns the frame that it occupies."""
  font = _font(12)
  width, height = draw.textlength(name, font) + 6, 16
  x1, y1, x2, y2 = box
  corners = [(x, y) for y in (y1 - height - 2, y2 + 2) for x in (x1 - 2, x2 - width + 2)]
  corners += [(x1 + 2, y1 + 2), (x1 + 2, y2 - height - 2)]
  frames = [_within((x, y, x + width, y + height)) for x, y in corners]
  frame = min(frames, key=lambda f: sum(_common_area(f, other) for other in occupied))
  draw.rectangle(frame, fill=color)
  draw.text((frame[0] + 3, frame[1] + 1), name, (0, 0, 0), font)
  return frame


def _within(frame: _Frame) -> _Frame:
  """Moves a frame into the image."""
  x1, y1, x2, y2 = frame
  dx = max(0, -x1) - max(0, x2 - _SIDE)
  dy = max(0, -y1) - max(0, y2 - _SIDE)
  return x1 + dx, y1 + dy, x2 + dx, y2 + dy


def _common_area(a: _Frame, b: _Frame) -> float:
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  return max(0, width) * max(0, height)


def _pixels(box: Box, frame: _Frame) -> _Frame:
  """Converts a box in 0–1000 of the image to pixels of the tile; the image fills `frame`."""
  left, top, right, bottom = frame
  x1, x2 = (round(left + value * (right - left) / 1000) for value in (box[0], box[2]))
  y1, y2 = (round(top + value * (bottom - top) / 1000) for value in (box[1], box[3]))
  return x1, y1, x2, y2


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
  return ImageFont.load_default(size)
