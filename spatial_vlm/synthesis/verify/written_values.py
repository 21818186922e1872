"""What a written number claims: an exact value, a rounded one, or a limit."""

import re
from typing import NamedTuple

_ROUNDED = re.compile(
  r"\b(?:about|around|approximately|approx\.?|roughly|circa|ca\.|close to|some|nearly|almost|or so|slightly)"
  r"(?: (?:more|less) than| (?:over|under|above|below))? ?$|[~≈] ?$",
  re.IGNORECASE,
)
_ABOVE = re.compile(
  r"(?:\b(?:more|larger|greater|farther|further|higher|wider|no less) than|\b(?:over|above|beyond|at least|exceeds?))"
  r" (?:the |a )?$",
  re.IGNORECASE,
)
_BELOW = re.compile(
  r"(?:\b(?:less|smaller|fewer|lower|no more|narrower) than|\b(?:under|below|at most|up to|within|just short of))"
  r" (?:the |a )?$",
  re.IGNORECASE,
)
_MAX_ROUNDING_SHARE = 0.1
"""A rounded number differs from the value by at most this share of itself."""


class Claim(NamedTuple):
  """The values that a written number allows: `low` to `high`."""

  low: float
  high: float
  is_exact: bool

  def allows(self, value: float) -> bool:
    """Tells whether the number may stand for this value."""
    return self.low <= value <= self.high


def read_claim(before: str, value: float, tolerance: float) -> Claim:
  """Returns what a number claims after the words `before`.

  Args:
    before: the text in front of the number and its key.
    value: the number.
    tolerance: allowed difference of an exact number.

  "About 600" allows what rounds to it: half a unit of its last digit that is not 0, and at most a tenth. "More than
  600" allows up to twice as much, "less than 600" down to half of it, because a distant limit says nothing.

  >>> read_claim("they are about ", 600, tolerance=2)
  Claim(low=550.0, high=650.0, is_exact=False)
  """
  if _ROUNDED.search(before):
    slack = max(tolerance, min(_rounding(value), _MAX_ROUNDING_SHARE * value))
    return Claim(value - slack, value + slack, False)
  if _ABOVE.search(before):
    return Claim(value - tolerance, 2 * value + tolerance, False)
  if _BELOW.search(before):
    return Claim(value / 2 - tolerance, value + tolerance, False)
  return Claim(value - tolerance, value + tolerance, True)


def _rounding(value: float) -> float:
  """Returns half of the unit to which the number is rounded: 50 for 600, 25 for 650, 5 for 610, 0.5 for 605."""
  if value != int(value) or not value:
    return 0.0
  return next((unit / 2 for unit in (100, 50, 10) if value % unit == 0), 0.5)
