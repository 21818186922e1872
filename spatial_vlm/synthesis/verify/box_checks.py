"""Checks of a draft's boxes, and of the numbers and the label that must agree with them.

Each check returns the reason for a rejection, or None.
"""

from spatial_vlm.answers import Box
from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.synthesis.draft import Draft
from spatial_vlm.synthesis.verify import quantities
from spatial_vlm.synthesis.verify.check_settings import (
  BOX_RELATIONS,
  SEPARATING,
  CheckSettings,
)
from spatial_vlm.synthesis.verify.statement_patterns import match_objects, statement_objects


def check_objects(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires a box for the statement's subject and object, under the statement's own names."""
  wanted = statement_objects(record)
  missing = [
    name for name, found in zip(wanted, match_objects(draft, record), strict=True) if not found
  ]
  if not any(wanted):
    return f"{record.caption!r} and its record name no objects"
  return f"no box for {missing} among {[name for name, _ in draft.objects]}" if missing else None


def check_boxes(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires boxes inside the image with an allowed area; names and boxes must be unique."""
  may_fill = () if record.relation in SEPARATING else match_objects(draft, record)
  by_name: dict[str, Box] = {}
  for name, box in draft.objects:
    if not is_box(box):
      return f"{name} {list(box)} is no box x1 < x2, y1 < y2 in 0–1000"
    share = (box[2] - box[0]) * (box[3] - box[1]) / 1e6
    fills = share > settings.max_box_share
    if share < settings.min_box_share or (fills and name not in may_fill):
      return f"{name} {list(box)} covers {share:.2%} of the image"
    if fills:
      may_fill = ()  # Only one object may.
    if name.casefold() in by_name:
      return f"{name!r} appears twice"
    if box in by_name.values():
      other = next(other for other, its in by_name.items() if its == box)
      return f"{other!r} and {name!r} have the same box, {list(box)}"
    by_name[name.casefold()] = box
  return None


def check_numbers(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires that the Reasoning's numbers follow from the boxes and its comparisons hold."""
  return quantities.find_number_error(draft.reasoning, draft.objects, settings.number_tolerance)


def check_geometry(draft: Draft, record: Record, settings: CheckSettings) -> str | None:
  """Requires that the boxes do not contradict the label, for relations that boxes can decide."""
  subject, other = match_objects(draft, record)
  is_decisive = record.relation in settings.decisive
  is_necessary = record.relation in settings.necessary and record.label == 1
  if not (subject and other) or not (is_decisive or is_necessary):
    return None
  if record.reference_frame is not None:
    return None  # VSR gives the frame of a statement that is not meant from the viewer's place.
  by_name = dict(reversed(draft.objects))  # Reversed, so that the first of a repeated name counts.
  evidence = RELATIONS[BOX_RELATIONS[record.relation]].evidence(by_name[subject], by_name[other])
  if abs(evidence) < settings.geometry_margin or (evidence > 0) == bool(record.label):
    return None
  label = "true" if record.label else "false"
  return f"labelled {label}, but the boxes give {record.relation!r} an evidence of {evidence:+d}"


def is_box(box: Box) -> bool:
  """Tells whether the box is not empty and lies inside the image."""
  x1, y1, x2, y2 = box
  return 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000
