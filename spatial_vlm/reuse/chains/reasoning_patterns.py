"""The wordings of a comparison, as a table of patterns: what stands on its two sides, and the signs in words.

A comparison is a side, a sign and a side with nothing unknown between them: "the dog's centre (x=690) | lies to the
right of | the refrigerator's x=395". Any other wording matches nothing and is left. Objects stand in the text as tokens
(`_a_`), so that the patterns are the same for all chains.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from spatial_vlm.reuse.chains.comparison import PAIR_KEYS
from spatial_vlm.reuse.chains.comparison_words import (
  AROUND,
  BE,
  CLAUSE_END,
  DET,
  ENDS,
  HYPOTHETICAL,
  INSIDE,
  JOIN,
  KEY,
  KEYS,
  NAME,
  NUMBER,
  ROLES,
  SIGNS,
  WITHIN,
  named,
)


@dataclasses.dataclass(frozen=True)
class Side:
  """One side as the text gives it; "" for what it does not say."""

  value: float
  key: str
  role: str
  owner: str


@dataclasses.dataclass(frozen=True)
class Written:
  """A comparison as the text gives it, with its place there."""

  start: int
  end: int
  left: Side
  sign: str
  right: Side | None = None


def written_comparisons(text: str) -> list[Written]:
  """Returns the comparisons in the order of the text; ones that a sentence only supposes ("if …") are left out."""
  found = [*_signed(text), *_ranges(text)]
  return sorted((w for w in found if not _is_supposed(text, w)), key=lambda w: (w.start, w.end))


def written_measures(text: str) -> list[Written]:
  """Returns the measures of two objects that stand alone, as in "gap=0" or "the gap between them is 40"."""
  found = []
  for match in _MEASURE.finditer(text):
    side = _read_side(match, "1")
    if side.key in PAIR_KEYS:
      found.append(Written(match.start(), match.end(), side, ""))
  return [written for written in found if not _is_supposed(text, written)]


def groups(text: str, written: Sequence[Written]) -> Iterator[tuple[list[Written], str]]:
  """Yields comparisons that only commas, "and" or "or" separate, each group with its joiner (", " or " or ")."""
  group: list[Written] = []
  for comparison in written:
    between = text[group[-1].end : comparison.start] if group else ""
    if group and not (comparison.start < group[-1].end or JOIN.fullmatch(between)):
      yield group, _joiner(text, group)
      group = []
    group.append(comparison)
  if group:
    yield group, _joiner(text, group)


def last_clause(text: str) -> str:
  """Returns the last clause that is more than a conclusion without numbers ("Therefore, the dog is …")."""
  clauses = [clause.strip() for clause in CLAUSE_END.split(text) if clause.strip()]
  while len(clauses) > 1 and _CONCLUDES.match(clauses[-1]) and not re.search(r"\d", clauses[-1]):
    clauses.pop()
  return clauses[-1] if clauses else ""


_CONCLUDES = re.compile(
  r"(?:so|therefore|thus|hence|consequently|accordingly|this|that|which|it follows|as a result)\b",
  re.I,
)


def _side(n: str) -> str:
  """Returns the pattern of a side, whose groups carry the suffix `n`."""
  role = "|".join(ROLES)
  noun = rf"(?: (?:{role}))?"
  return (
    rf"(?:{DET}(?P<axis{n}>[xy])[- ](?:coordinate|position|value)s? (?:of|for) )?"
    rf"(?:{DET}(?P<owner{n}>{NAME})(?:['’]s?)?(?: own)?(?: box)?(?=[\s,(])[ ,]*\(?)?"
    rf"(?:(?:whose|with|has|having|its|his|her|their) )*"
    rf"(?:{DET}(?:(?P<along{n}>horizontal|vertical|x|y)[- ])?(?P<role{n}>{role})(?: (?:coordinate|position|value))?"
    rf"(?: (?:of|between|from) (?:{DET}(?P<of{n}>{NAME})(?:['’]s? box)?(?: (?:and|to) {DET}(?P<to{n}>{NAME}))?"
    r"|(?:their|the) (?:two )?(?:centres|centers|boxes|objects)|them|the two))?(?=[\s,(=])[ ,]*)?"
    rf"(?:[ ,(]|(?:(?:which|that) )?(?:is|lies|sits|stands|at|of|being|only|just|by|to|(?P<ends{n}>"
    rf"{'|'.join(ENDS)}))(?= )|= |: ){{0,8}}"
    rf"(?:\b(?P<key{n}>{KEY})=)?(?<![\w.=]-)(?<![\d.])\b(?P<value{n}>{NUMBER})(?: units?| points?)?\)?"
    rf"(?: ?\({DET}(?P<in{n}>{NAME})(?:['’]s?)?{noun}\)| (?:of|for) {DET}(?P<for{n}>{NAME})(?:['’]s?)?{noun})?"
  )


_ANY_SIGN = re.compile("|".join(SIGNS), re.I)
_ANY_INCLUSION = re.compile(rf"\b(?:{INSIDE}|{AROUND})\b", re.I)
_MEASURE = re.compile(_side("1"), re.I)
_SIGNED = re.compile(
  rf"{_side('1')}(?:, {DET}(?P<then1>{NAME})(?= (?:is|are|lies|sits|stands|exceeds)\b))?[ ,]*"
  rf"(?:(?:which|that|and|it|this) )?(?:{BE},? )*"
  rf"(?:{'|'.join(f'(?P<s{i}>{words})' for i, words in enumerate(SIGNS))})(?![\w=])[ ,]*"
  rf"(?P<second>)(?:(?:that|the one|the value|the corresponding value) (?:of |for )?)?{_side('2')}",
  re.I,
)


def _signed(text: str) -> Iterator[Written]:
  for start, end in _clauses(text, _ANY_SIGN):
    while match := _SIGNED.search(text, start, end):
      number = next(i for i in range(len(SIGNS)) if match[f"s{i}"])
      left, right = _read_side(match, "1"), _read_side(match, "2")
      if sign := _sign([*SIGNS.values()][number], left.key or right.key):
        yield Written(match.start(), match.end(), left, sign, right)
      start = max(match.start("second"), match.start() + 1)


def _clauses(text: str, word: re.Pattern[str]) -> Iterator[tuple[int, int]]:
  """Yields start and end of the clauses with this word: the large patterns are slow on others."""
  start = 0
  for end in (*(match.start() for match in CLAUSE_END.finditer(text)), len(text)):
    if word.search(text, start, end):
      yield start, end
    start = end


def _sign(sign: str, key: str) -> str:
  """Returns the sign of a direction: x grows to the right, y downward; other quantities have no left and right."""
  if sign in ("right", "left"):
    return {"right": ">", "left": "<"}[sign] if key in ("x", "") else ""
  if sign in ("down", "up"):
    if not key:
      return ""
    is_down = sign == "down"
    return ">" if is_down == (key == "y") else "<"
  return sign


def _spans(n: str) -> str:
  """Returns the pattern of one or two ranges, as in "the bed's x=80 to x=925 and y=60 to y=400"."""
  to = r" ?(?:to|–|-|and|through|until|up to) ?"
  first, second = (
    rf"(?P<{k}{n}>[xy])=(?P<{k}low{n}>{NUMBER}){to}(?:[xy]=)?(?P<{k}high{n}>{NUMBER})" for k in "kl"
  )
  return (
    rf"(?:{DET}(?P<owner{n}>{NAME})(?:['’]s?)?,? )?(?:{DET}(?:box|span|extent|range|outline|interval)s? )?"
    rf"(?:(?:spans?|spanning|extends?|reaches|runs|covers|of|from|at|is|which|lies) |\()*"
    rf"{first}(?:(?:,| and|, and) (?:from )?{second})?"
  )


_RANGES = re.compile(rf"{_spans('1')}{WITHIN}(?:(?P<inside>{INSIDE})|{AROUND}) {_spans('2')}", re.I)


def _ranges(text: str) -> Iterator[Written]:
  """Yields what "x=205 to x=790 lies within the bed's x=80 to x=925" compares: both ends, on each axis."""
  found = (_RANGES.finditer(text, start, end) for start, end in _clauses(text, _ANY_INCLUSION))
  for match in itertools.chain.from_iterable(found):
    sides = ("1", "2") if match["inside"] else ("2", "1")
    for letter in "kl":
      inner, outer = ({p: match[f"{letter}{p}{n}"] for p in ("", "low", "high")} for n in sides)
      if not inner[""] or not outer[""] or inner[""].lower() != outer[""].lower():
        continue
      key = inner[""].lower()
      edges = ("left edge", "right edge") if key == "x" else ("top edge", "bottom edge")
      for end, edge, signs in zip(("low", "high"), edges, ((">", ">="), ("<", "<=")), strict=True):
        values = [_value(part[end]) for part in (inner, outer)]
        sign = signs[values[0] == values[1]]
        a, b = (
          Side(value, key, edge, match[f"owner{n}"] or "")
          for value, n in zip(values, sides, strict=True)
        )
        yield Written(match.start(), match.end(), a, sign, b)


def _read_side(match: re.Match[str], n: str) -> Side:
  """Returns the side of a match; where two words disagree about its key, the one at the number counts."""
  group = {name[: -len(n)]: value for name, value in match.groupdict().items() if name[-1] == n}
  role, key = named(ROLES, group["role"])
  key_role, own_key = KEYS.get((group["key"] or "").lower(), ("", ""))
  axis = {"horizontal": "x", "vertical": "y"}.get(
    (group["along"] or "").lower(), group["along"] or group["axis"] or ""
  )
  if key in ("gap", "d", "overlap"):
    role = {"x": "horizontal", "y": "vertical"}.get(axis, "")
  else:
    key = own_key or key or axis.lower()
  role = role or key_role
  if group["ends"]:
    edges = named(ENDS, group["ends"])
    role = role or edges[key == "y"]
  owner = group["owner"] or group["of"] or group["in"] or group["for"] or group.get("then") or ""
  return Side(_value(group["value"]), key, role, owner)


def _joiner(text: str, group: Sequence[Written]) -> str:
  between = (text[a.end : b.start] for a, b in zip(group, group[1:], strict=False))
  return " or " if any(re.search(r"\bor\b", words) for words in between) else ", "


def _is_supposed(text: str, written: Written) -> bool:
  start = max((m.end() for m in CLAUSE_END.finditer(text, 0, written.start)), default=0)
  after = re.match(r"[ ,]*(?:would|should|could)\b", text[written.end :])
  return bool(after or HYPOTHETICAL.search(text, start, written.start))


def _value(digits: str) -> float:
  return float(digits) if "." in digits else int(digits)
