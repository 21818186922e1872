"""Rendered scenes with statements, which the page offers as samples."""

from typing import TypedDict

import PIL.Image

from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.processor.image import data_url, png

EXAMPLES = (4, 0, 13, 15, 16, 9)
"""Numbers in the test split of seed 0: six relations; the first three statements are true, the others false."""


class Sample(TypedDict):
  """An image with a statement about it."""

  id: str
  image: str
  """PNG as a data URL."""
  statement: str
  label: int
  """1: the statement is true; 0: it is false."""


def sample_scenes(image_size: int) -> list[Sample]:
  """Renders the samples as squares of `image_size` pixels; no model was trained on them."""
  source = SceneSource("test", seed=0, count=max(EXAMPLES) + 2, image_size=image_size)
  samples = []
  for number in EXAMPLES:
    example = source[number]
    samples.append(
      Sample(
        id=f"scene-{number}",
        image=data_url(png(PIL.Image.fromarray(example.image))),
        statement=example.record.caption,
        label=example.record.label,
      )
    )
  return samples
