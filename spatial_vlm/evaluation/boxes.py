"""Scores of the boxes that answers name."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from spatial_vlm.answers import STATEMENT, Box, Grammar
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.statistics import Share, share

RIGHT_BOX_IOU = 0.5
"""Least overlap of a right box (PASCAL VOC's threshold)."""


class BoxScores(TypedDict):
  """How well the boxes of answers lie on the objects."""

  box_n: int
  box_iou: float | None
  correct_with_wrong_boxes: Share | None
  correct_with_swapped_boxes: Share | None
  binding_errors: Share | None


def box_scores(predictions: Sequence[Prediction], grammar: Grammar = STATEMENT) -> BoxScores:
  """Measures whether the boxes of chains are right, and whether the verdict rests on them.

  - `box_n`: number of answers judged: those to examples with true boxes that are chains or do not parse.
  - `box_iou`: mean over these answers of the IoU of the objects named in the statement; a missing
    box counts 0.
  - `correct_with_wrong_boxes`: share of the right ones among them in which the box of a named
    object has IoU < 0.5 or is missing.
  - `correct_with_swapped_boxes`: share of the right ones among them in which the box of a named object
    lies nearer to another object.
  - `binding_errors`: share of the predicted boxes that lie nearer to another object than to the one
    whose name they carry. Boxes whose name is not in the image are not counted.

  All are None unless most parsed answers are chains: a method that answers in the short form has no
  boxes, and the few full chains that it falls back on do not represent it.
  """
  parsed = [grammar.parse(p.text) for p in predictions]
  judged = [
    (p, answer.boxes if answer else {})
    for p, answer in zip(predictions, parsed, strict=True)
    if named_objects(p) and (answer is None or answer.form == "chain")
  ]
  chains = [answer.form == "chain" for answer in parsed if answer]
  if not judged or sum(chains) * 2 <= len(chains):
    return BoxScores(
      box_n=0,
      box_iou=None,
      correct_with_wrong_boxes=None,
      correct_with_swapped_boxes=None,
      binding_errors=None,
    )
  ious = [
    [iou(boxes[n], p.boxes_true[n]) if n in boxes else 0.0 for n in named_objects(p)]
    for p, boxes in judged
  ]
  lucky = [min(row) < RIGHT_BOX_IOU for (p, _), row in zip(judged, ious, strict=True) if p.right]
  misbound = [
    {n: nearest_object(box, p.boxes_true) != n for n, box in boxes.items() if n in p.boxes_true}
    for p, boxes in judged
  ]
  swapped = [
    any(wrong.get(name, False) for name in named_objects(p))
    for (p, _), wrong in zip(judged, misbound, strict=True)
    if p.right
  ]
  return BoxScores(
    box_n=len(judged),
    box_iou=_mean(map(_mean, ious)),
    correct_with_wrong_boxes=share(lucky),
    correct_with_swapped_boxes=share(swapped),
    binding_errors=share([wrong for found in misbound for wrong in found.values()]),
  )


def named_objects(p: Prediction) -> list[str]:
  """Returns the objects with a true box that the statement names, in the order of the statement.

  Longer names are matched first, so that "red mug" is not also taken for "mug".
  """
  caption, found = p.caption.casefold(), {}
  for name in sorted(p.boxes_true, key=len, reverse=True):
    if match := re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", caption):
      found[name] = match.start()
      caption = caption[: match.start()] + "\0" * len(match[0]) + caption[match.end() :]
  return sorted(found, key=found.__getitem__)


def iou(a: Box, b: Box) -> float:
  """Returns the intersection over union of two boxes x1, y1, x2, y2 with area."""
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  shared = max(width, 0) * max(height, 0)
  return shared / (_area(a) + _area(b) - shared)


def nearest_object(box: Box, objects: Mapping[str, Box]) -> str:
  """Returns the name of the object that `box` overlaps most; among equals, the one with the nearest centre."""
  return max(
    objects, key=lambda name: (iou(box, objects[name]), -_centre_distance(box, objects[name]))
  )


def _area(box: Box) -> int:
  return (box[2] - box[0]) * (box[3] - box[1])


def _centre_distance(a: Box, b: Box) -> float:
  return math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2


def _mean(values: Iterable[float]) -> float:
  return float(np.mean(list(values)))
