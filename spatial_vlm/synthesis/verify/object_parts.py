"""Finds coordinates that a text gives for a part of an object: "the dog's head is at about x=300"."""

import re
from collections.abc import Iterable

from spatial_vlm.data.measurements import Number, any_of

_BOX_WORDS = frozenset(
  (
    *(
      "centre",
      "center",
      "centres",
      "centers",
      "middle",
      "midpoint",
      "edge",
      "edges",
      "side",
      "sides",
    ),
    *(
      "border",
      "borders",
      "boundary",
      "box",
      "span",
      "extent",
      "range",
      "left",
      "right",
      "top",
      "bottom",
    ),
    *("upper", "lower", "end", "ends", "limit", "width", "height", "coordinate", "coordinates"),
    *(
      "position",
      "corner",
      "outline",
      "x",
      "y",
      "start",
      "horizontal",
      "vertical",
      "distance",
      "size",
    ),
    *("location", "place", "base", "gap", "area", "extents", "value"),
  )
)
"""Words for the box itself; its edges and its centre are exact."""
_LINKS = (
  r"(?:is|are|lies|lie|sits|sit|stands|ends|begins|starts|reaches|appears|rests|hangs|extends|spans|located"
  r"|visible|seen|found|holds|grips|touches|meets|crosses|covers|points|at|near|around|from)"
)
_PART = r"(?P<part>(?:[a-z-]+,? ){1,3}?)"
_REST = rf"{_LINKS} (?:[a-z≈~]+ )*\(?$"
_EARLIER_NUMBERS = re.compile(
  r"(?:[xy]=\d+(?:\.\d+)?(?: and|,| to|–|-) ?(?:about |around )?)+$", re.IGNORECASE
)
"""Other coordinates of the same part: "at about x=200 and y=560"."""


def part_owner(number: Number, clause: str, names: Iterable[str]) -> str | None:
  """Returns the object whose part lies at the number, in lower case; "" for "its head", None if it is no part."""
  before = re.sub(r"\b[A-Za-z]+=$", "", clause[: number.end].removesuffix(_digits(number, clause)))
  before = _EARLIER_NUMBERS.sub("", before)
  named = any_of(names)
  for pattern in (
    rf"(?P<owner>{named})['’]s? {_PART}{_REST}",
    rf"\b(?P<pronoun>its|his|her|their) {_PART}{_REST}",
    rf"\bthe {_PART}of (?:the |an? )?(?P<owner>{named}) {_REST}",
  ):
    if match := re.search(pattern, before, re.IGNORECASE):
      last = match["part"].split()[-1].lower().rstrip(",")
      return None if last in _BOX_WORDS else (match.groupdict().get("owner") or "").casefold()
  return None


def _digits(number: Number, clause: str) -> str:
  found = re.search(r"\d+(?:\.\d+)?$", clause[: number.end])
  return found[0] if found else ""
