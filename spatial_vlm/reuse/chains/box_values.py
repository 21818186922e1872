"""Values that boxes determine: positions and sizes of one object, measures of two."""

import math
from collections.abc import Iterator

from spatial_vlm.answers import Box
from spatial_vlm.data.relations import gaps, offsets, overhangs, size
from spatial_vlm.reuse.chains.comparison import Quantity

TOLERANCE = 1.0
"""A written value differs from the one of the boxes by less than this: centres are written without their halves."""
_AXES = ("horizontal", "vertical")


def box_quantities(owner: str, box: Box) -> Iterator[Quantity]:
  """Yields the centre, the edges and the sizes of an object."""
  x1, y1, x2, y2 = box
  for key, low, high, low_edge, high_edge in (
    ("x", x1, x2, "left edge", "right edge"),
    ("y", y1, y2, "top edge", "bottom edge"),
  ):
    yield Quantity((low + high) / 2, key, "centre", owner)
    yield Quantity(low, key, low_edge, owner)
    yield Quantity(high, key, high_edge, owner)
  width, height = size(box)
  yield Quantity(width, "w", "", owner)
  yield Quantity(height, "h", "", owner)
  yield Quantity(width * height, "area", "", owner)


def pair_values(key: str, role: str, a: Box, b: Box) -> set[float]:
  """Returns the values that a measure of two boxes may have.

  With `role` "horizontal" or "vertical" it is one along that axis. Else it is that of the whole boxes: the larger of
  both axes (as scenes are measured) or the Euclidean one, for an overlap also its area. The smaller of both axes is
  not among them: boxes with a gap along x only are apart.
  """
  measures = {
    "gap": (gaps,),
    "overhang": (overhangs,),
    "overlap": (_overlaps,),
    "d": (offsets, gaps),
  }
  found: list[tuple[float, ...]] = [measure(a, b) for measure in measures[key]]
  if role in _AXES:
    i = _AXES.index(role)
    edges: set[float] = (
      {abs(a[j] - b[k]) for j in (i, i + 2) for k in (i, i + 2)} if key == "d" else set()
    )
    return edges | {values[i] for values in found}
  if key == "overlap":
    return {*found[0], math.prod(found[0])}
  return {max(values) for values in found} | {math.hypot(*values) for values in found}


def _overlaps(a: Box, b: Box) -> tuple[int, int]:
  """Returns the lengths that two boxes share along x and y."""
  return max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
