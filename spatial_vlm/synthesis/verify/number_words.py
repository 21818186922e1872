"""Rewrites numbers that a text spells out as digits, so that the checks see one spelling."""

import re

_UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = (
  *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
  *("eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {
  **{word: i for i, word in enumerate(_UNITS, start=1)},
  **{word: i for i, word in enumerate(_TEENS, start=10)},
  **{word: 10 * i for i, word in enumerate(_TENS, start=2)},
  "a": 1,
}
_UNIT = rf"(?:{'|'.join(_UNITS)})"
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[ -]{_UNIT})?|{'|'.join(_TEENS)}|{_UNIT})"
_NUMBER = re.compile(
  rf"\b(?:(?:a|one) thousand|(?:a|{_UNIT}) hundred(?:(?: and)? {_BELOW_100})?|{_BELOW_100})\b",
  re.IGNORECASE,
)
_MEASURED = re.compile(
  r"[ -](?:units?|points|pixels?|px|per ?cent|degrees?|metres?|meters?|centimet\w+|inch(?:es)?)\b"
  r"|[ -]times (?:as|the|larger|bigger|wider|taller|longer|higher|smaller|farther|further|more)\b",
  re.IGNORECASE,
)
"""Units that may follow a number."""
_MAX_COUNT = 10
"""Up to this value, a number without a unit stays a word, because it counts things or stands for "a thing"."""


def with_digits(text: str) -> str:
  """Returns the text with spelled-out numbers as digits; numbers up to ten only in front of a unit.

  >>> with_digits("two cats, about six hundred and five units apart, twice as wide")
  'two cats, about 605 units apart, 2 times as wide'
  """
  text = re.sub(r"\btwice (?=as|the)", "2 times ", text, flags=re.IGNORECASE)
  text = re.sub(
    r"(?<![\d,])(\d{1,3}),(\d{3})\b(?![,\d])", r"\1\2", text
  )  # 1,000, but not 100,201,301
  return _NUMBER.sub(lambda match: _digits(match, text), text)


def _digits(match: re.Match[str], text: str) -> str:
  words = re.findall(r"[a-z]+", match[0].lower())
  value = 0
  for word in words:
    if word in ("hundred", "thousand"):
      value *= 100 if word == "hundred" else 1000
    else:
      value += _VALUES.get(word, 0)
  is_kept = value <= _MAX_COUNT and not _MEASURED.match(text, match.end())
  return match[0] if is_kept else str(value)
