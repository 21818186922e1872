"""Thresholds of the checks."""

import dataclasses

from spatial_vlm.config import UsageError
from spatial_vlm.data.relations import RELATIONS

BOX_RELATIONS = {name: name for name in RELATIONS} | {
  "at the left side of": "left of",
  "at the right side of": "right of",
  "over": "above",
  "under": "below",
  "beneath": "below",
}
"""Relations of VSR that boxes give evidence about → the entry of `RELATIONS` that measures it."""

SEPARATING = (
  *(
    "left of",
    "right of",
    "at the left side of",
    "at the right side of",
    "far from",
    "far away from",
  ),
  *("away from", "outside", "out of", "detached from", "across from", "opposite to", "off", "past"),
)
"""Relations that leave room for both objects: in a statement about one of them, no object fills the whole image."""


@dataclasses.dataclass(frozen=True)
class CheckSettings:
  """Thresholds of the checks; raises UsageError for values that cannot work."""

  min_words: int
  max_words: int
  """Words of the whole chain."""
  min_box_share: float
  max_box_share: float
  """Share of the image area; a smaller box is a speck, a larger one the whole image, which only one object of a
  statement may fill, as a train that one is inside or a table that a plate is on (see SEPARATING)."""
  number_tolerance: float
  """Allowed difference between a number of the Reasoning and the boxes, in units of 0–1000."""
  geometry_margin: int
  """Weaker evidence contradicts no label, in units of 0–1000."""
  decisive: tuple[str, ...]
  """Relations that boxes prove and disprove: box evidence must agree with either label."""
  necessary: tuple[str, ...]
  """Relations that boxes can only disprove: an object above another is higher, but a higher one may be behind it."""

  def __post_init__(self):
    if unknown := {*self.decisive, *self.necessary} - set(BOX_RELATIONS):
      raise UsageError(
        f"boxes give no evidence about the relations {sorted(unknown)}; choose decisive and necessary relations from "
        f"{', '.join(BOX_RELATIONS)}"
      )
    if not 0 <= self.min_words <= self.max_words:
      raise UsageError(
        f"min_words is {self.min_words} and max_words is {self.max_words}; give 0 <= min_words <= max_words"
      )
    if not 0 <= self.min_box_share < self.max_box_share <= 1:
      raise UsageError(
        f"min_box_share is {self.min_box_share} and max_box_share is {self.max_box_share}; give "
        "0 <= min_box_share < max_box_share <= 1"
      )
    if self.number_tolerance < 0 or self.geometry_margin < 0:
      raise UsageError(
        f"number_tolerance is {self.number_tolerance} and geometry_margin is {self.geometry_margin}; neither may be "
        "negative (units of 0–1000)"
      )
