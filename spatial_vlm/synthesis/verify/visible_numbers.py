"""Numbers that a text reads from the image itself, such as a route, a clock or a count of people.

No box determines them, so the checks of quantities leave them out. Every pattern needs a word or sign that no
coordinate has.
"""

import re
from collections.abc import Iterable

from spatial_vlm.data.measurements import any_of

_VALUE = r"\d+(?:[.:]\d+)?"
_NOT_MEASURED = (
  r"(?! ?(?:[<>=≤≥%°]|units?\b|points\b|apart\b|away\b|(?:to|and|or|–|-) ?(?:\w=)?\d))"
)
"""What follows a coordinate or length, but no number of a sign."""
_MARKED = (
  r"(?:number|no\.|nr\.?|#|№|route|track|platform|gate|room|flight|highway|interstate|exit|channel|jersey|shirt"
  r"|apartment|section|pier|runway|plate|bus|tram|train|line)"
)
"""Words in front of the number of a thing."""
_SHOWS = (
  r"(?:reads?|reading|says?|shows?|showing|displays?|displaying|marked|numbered|labell?ed|printed)"
)
_COUNTED = (
  r"(?!(?:units?|points?|pixels|degrees|times|apart|percent|cm|mm|km|m|inch(?:es)?|feet|foot|yards|miles"
  r"|\w*met(?:re|er)s?)\b)(?:(?!(?:is|was|as|has|its|less|and|or|to|of|in|at|by)\b)[a-z-]+ )?"
  r"(?:people|men|women|children|sheep|fish|(?!(?:this|was|has|its|less|units|times)\b)[a-z]{2,}s)\b"
)
"""A plural noun, perhaps with an adjective, that is no unit."""
_MAX_COUNT = 100


def without_visible_numbers(text: str, names: Iterable[str]) -> str:
  """Returns the text without the numbers that belong to signs, clocks, years and counts.

  Args:
    text: sentences of a Reasoning.
    names: of the boxed objects; "bus 42" is the route of a bus, but "mug 42" is a coordinate.

  >>> without_visible_numbers("At 10:15 bus number 42 passes 12 people; bus x=42.", ["bus"])
  'At bus number passes people; bus x=42.'
  """
  for quoted in (r"""["“][^"“”]*\d[^"“”]*["”]""", r"""(?<=\s)['‘][^'’]*\d[^'’]*['’](?=[\s.,;)])"""):
    text = re.sub(quoted, "", text)
  text = re.sub(r"\b\d{1,2}:\d{2}\b ?", "", text)
  text = re.sub(
    r"\b\d{1,2} ?(?=(?:o['’]clock|a\.m\.|p\.m\.|[ap]m)(?!\w))", "", text, flags=re.IGNORECASE
  )
  marks = rf"\b{_MARKED}(?: (?:number|no\.|nr\.?))? ?#?"
  for match in reversed(
    [*re.finditer(rf"({marks}){_VALUE}\b{_NOT_MEASURED}", text, re.IGNORECASE)]
  ):
    text = text[: match.end(1)].rstrip() + text[match.end() :]
  text = re.sub(rf"#{_VALUE}\b", "", text)
  text = re.sub(
    rf"\b({_SHOWS}(?: (?:with|the|a|number|time|route|text)){{0,3}}) {_VALUE}\b{_NOT_MEASURED}",
    r"\1",
    text,
    flags=re.IGNORECASE,
  )
  text = re.sub(r"(?<![=\d.])\b(?:1[4-9]|20)\d\d\b(?! ?(?:units?|points)\b|[.,]\d)", "", text)
  return _without_counts(text, names)


def _without_counts(text: str, names: Iterable[str]) -> str:
  """Removes numbers directly in front of a plural noun, as in "12 people"."""
  pattern = re.compile(
    rf"(?<![=<>≤≥.\d])(?<!\bat )(?<!\bto )\b(\d{{1,3}}) (?={_COUNTED})(?!{any_of(names)}['’ ]+[xywh]\b)",
    re.IGNORECASE,
  )
  return pattern.sub(lambda match: "" if int(match[1]) <= _MAX_COUNT else match[0], text)
