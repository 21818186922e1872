"""The wordings of a comparison, as a table of patterns: what stands on its two sides, and the signs in words.

A comparison is a side, a sign and a side with nothing unknown between them: "the dog's centre (x=690) | lies to the
right of | the refrigerator's x=395". Any other wording matches nothing and is left. Objects stand in the text as tokens
(`_a_`), so that the patterns are the same for all chains.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

from spatial_vlm.reuse.comparison import PAIR_KEYS

_NAME = r"_a+_"
"""Token of an object (see `object_token`)."""
_EDGE = (
  r"(?: |-|-hand )(?:most )?(?:edge|side|border|boundary|end|limit|extent|extreme|bound|margin|rim)"
)
ROLES = {
  rf"left(?:most)?{_EDGE}": ("left edge", "x"),
  rf"right(?:most)?{_EDGE}": ("right edge", "x"),
  rf"(?:top|upper|uppermost|topmost)(?:most)?{_EDGE}|top(?= [(xy\d])": ("top edge", "y"),
  rf"(?:bottom|lower|lowest|bottommost|lowermost){_EDGE}|bottom(?= [(xy\d])|base(?= [(xy\d])": (
    "bottom edge",
    "y",
  ),
  r"left(?= (?:[xy]=|is\b|at\b))": ("left edge", "x"),
  r"right(?= (?:[xy]=|is\b|at\b))": ("right edge", "x"),
  r"(?:centre|center|middle|midpoint|mid-point)(?:[- ]?point| line)?s?|cent(?:re|er)ed": (
    "centre",
    "",
  ),
  r"width": ("", "w"),
  r"height": ("", "h"),
  r"area": ("", "area"),
  r"(?:gap|free space|space|spacing|clearance)": ("", "gap"),
  r"(?:distance|separation|offset)": ("", "d"),
  r"overlap": ("", "overlap"),
  r"(?:threshold|limit|cut-?off|boundary value)": ("threshold", ""),
}
"""Nouns of a quantity → its role and its key, as in `Quantity`; "" where the rest of the text says it."""
_KEYS = {
  **{key: ("", key) for key in ("x", "y", "w", "h", "gap", "d", "overlap", "overhang", "area")},
  **{"width": ("", "w"), "height": ("", "h"), "distance": ("", "d")},
  **{"dx": ("horizontal", "d"), "dy": ("vertical", "d")},
  **{"cx": ("centre", "x"), "cy": ("centre", "y"), "xc": ("centre", "x"), "yc": ("centre", "y")},
  **{f"x{end}": ("left edge", "x") for end in ("1", "min")},
  **{f"y{end}": ("top edge", "y") for end in ("1", "min")},
  **{f"x{end}": ("right edge", "x") for end in ("2", "max")},
  **{f"y{end}": ("bottom edge", "y") for end in ("2", "max")},
}
"""Words in front of "=" → role and key."""
_ENDS = {
  r"(?:start|begin)(?:s|ning|ing)?": ("left edge", "top edge"),
  r"(?:end|stop)(?:s|ing)?": ("right edge", "bottom edge"),
}
"""Verbs in front of a coordinate → the edge that they name along x and along y."""

_IN_IMAGE = r"(?: in the (?:image|picture|frame))?"
SIGNS = {
  r">|greater than|larger than|more than|bigger than|exceeds|exceeding|in excess of|beyond|past|after": ">",
  r"<|less than|smaller than|fewer than|short of|before": "<",
  r"≥|>=|at least|no(?:t)? (?:less|smaller) than": ">=",
  r"≤|<=|at most|no(?:t)? (?:more|greater|larger) than": "<=",
  r"=|equal to|equals|the same as|identical (?:to|with)": "=",
  r"a (?:larger|greater|higher|bigger) (?:[xy]|value|coordinate|number)(?: value| coordinate)? than": ">",
  r"a (?:smaller|lower|lesser) (?:[xy]|value|coordinate|number)(?: value| coordinate)? than": "<",
  r"wider than|longer than|taller than": ">",
  r"narrower than|shorter than": "<",
  r"(?:to|on) the right(?:-hand side)? of|right of|further (?:to the )?right than|(?:to the )?right than": "right",
  r"(?:to|on) the left(?:-hand side)? of|left of|further (?:to the )?left than|(?:to the )?left than": "left",
  rf"below|lower(?: down)?{_IN_IMAGE} than|beneath|under(?:neath)?|(?:further )?down than": "down",
  rf"above|higher(?: up)?{_IN_IMAGE} than|over|(?:further )?up than": "up",
}
"""Words of a sign → the sign, or the direction in which the left side lies (x grows rightward, y downward)."""
_BE = (
  r"(?:is|are|was|lies|lie|lying|sits|stands|comes|remains|falls|being|located|situated|found|positioned|placed"
  r"|starts|begins|ends|stops|clearly|well|far|much|further|farther|still|only|just|slightly|even|also|thus|therefore"
  r"|in turn|itself|both|strictly|considerably|numerically|entirely|completely|fully)"
)
_DET = r"(?:(?:the|an?|its|his|her|their|this) )?"
_NUMBER = r"\d+(?:\.\d+)?(?![.\d]*\d)"
_KEY = rf"(?:{'|'.join(sorted(_KEYS, key=len, reverse=True))})"
_WITHIN = (
  r"[ ,)]*(?:(?:and|which|that|both|so it) )*(?:(?:lies?|is|are|falls?|fits?|sits?|stays?|remains?) )?"
  r"(?:(?:fully|entirely|completely|wholly|well|totally|also|both|horizontally|vertically) )*"
)
_INSIDE = r"(?:within|inside|contained (?:in|by|within)|enclosed by|between)"
_AROUND = r"(?:contains?|covers?|encloses?|includes?|surrounds?|encompass(?:es)?)"
_HYPOTHETICAL = re.compile(
  r"\b(?:if(?! (?:we|one|you) )|whether|would|should|could|requires?|needs?|needed|unless|instead of|rather than|were)\b",
  re.I,
)
_JOIN = re.compile(
  r"[\s,()]*(?:(?:and|or|as well as|while|whereas|both|also|but|vertically|horizontally|likewise"
  rf"|{_DET}{_NAME} is \w+er than it is \w+)\b[\s,()]*)*"
)
"""Words between comparisons that belong together."""
_CLAUSE_END = re.compile(r"[;.!?](?=\s|$)")


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


def object_token(number: int) -> str:
  """Returns the word that stands for an object in a text."""
  return f"_{'a' * (number + 1)}_"


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
    if group and not (comparison.start < group[-1].end or _JOIN.fullmatch(between)):
      yield group, _joiner(text, group)
      group = []
    group.append(comparison)
  if group:
    yield group, _joiner(text, group)


def last_clause(text: str) -> str:
  """Returns the last clause that is more than a conclusion without numbers ("Therefore, the dog is …")."""
  clauses = [clause.strip() for clause in _CLAUSE_END.split(text) if clause.strip()]
  while len(clauses) > 1 and _CONCLUDES.match(clauses[-1]) and not re.search(r"\d", clauses[-1]):
    clauses.pop()
  return clauses[-1] if clauses else ""


_CONCLUDES = re.compile(
  r"(?:so|therefore|thus|hence|consequently|accordingly|this|that|which|it follows|as a result)\b",
  re.I,
)


_ROLE_WORDS = [(re.compile(rf"\b(?:{words})\b", re.I), named) for words, named in ROLES.items()]


def role_before(words: str) -> tuple[str, str]:
  """Returns the role and key of the last noun of a quantity in the words before a number; ("", "") without one."""
  if not re.search(r"[a-z]{3}", words):  # as between the ends of a range
    return "", ""
  found = [(m.end(), named) for role, named in _ROLE_WORDS for m in role.finditer(f"{words} x=")]
  return max(found)[1] if found else ("", "")


def _side(n: str) -> str:
  """Returns the pattern of a side, whose groups carry the suffix `n`."""
  role = "|".join(ROLES)
  noun = rf"(?: (?:{role}))?"
  return (
    rf"(?:{_DET}(?P<axis{n}>[xy])[- ](?:coordinate|position|value)s? (?:of|for) )?"
    rf"(?:{_DET}(?P<owner{n}>{_NAME})(?:['’]s?)?(?: own)?(?: box)?(?=[\s,(])[ ,]*\(?)?"
    rf"(?:(?:whose|with|has|having|its|his|her|their) )*"
    rf"(?:{_DET}(?:(?P<along{n}>horizontal|vertical|x|y)[- ])?(?P<role{n}>{role})(?: (?:coordinate|position|value))?"
    rf"(?: (?:of|between|from) (?:{_DET}(?P<of{n}>{_NAME})(?:['’]s? box)?(?: (?:and|to) {_DET}(?P<to{n}>{_NAME}))?"
    r"|(?:their|the) (?:two )?(?:centres|centers|boxes|objects)|them|the two))?(?=[\s,(=])[ ,]*)?"
    rf"(?:[ ,(]|(?:(?:which|that) )?(?:is|lies|sits|stands|at|of|being|only|just|by|to|(?P<ends{n}>"
    rf"{'|'.join(_ENDS)}))(?= )|= |: )*"
    rf"(?:\b(?P<key{n}>{_KEY})=)?(?<![\w.=]-)(?<![\d.])\b(?P<value{n}>{_NUMBER})(?: units?| points?)?\)?"
    rf"(?: ?\({_DET}(?P<in{n}>{_NAME})(?:['’]s?)?{noun}\)| (?:of|for) {_DET}(?P<for{n}>{_NAME})(?:['’]s?)?{noun}"
    rf"|, {_DET}(?P<then{n}>{_NAME})(?= (?:is|are|lies|sits|stands|exceeds)\b))?"
  )


_ANY_SIGN = re.compile("|".join(SIGNS), re.I)
_ANY_INCLUSION = re.compile(rf"\b(?:{_INSIDE}|{_AROUND})\b", re.I)
_MEASURE = re.compile(_side("1"), re.I)
_SIGNED = re.compile(
  rf"{_side('1')}[ ,]*(?:(?:which|that|and|it|this) )?(?:{_BE},? )*"
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
  for end in (*(match.start() for match in _CLAUSE_END.finditer(text)), len(text)):
    if word.search(text, start, end):
      yield start, end
    start = end


def _sign(sign: str, key: str) -> str:
  """Returns the sign of a direction: x grows to the right, y downward; other quantities have no left and right."""
  if sign in ("right", "left"):
    return {"right": ">", "left": "<"}[sign] if key in ("x", "") else ""
  if sign in ("down", "up"):
    is_down = sign == "down"
    return ">" if is_down == (key == "y") else "<"
  return sign


def _spans(n: str) -> str:
  """Returns the pattern of one or two ranges, as in "the bed's x=80 to x=925 and y=60 to y=400"."""
  to = r" ?(?:to|–|-|and|through|until|up to) ?"
  first, second = (
    rf"(?P<{k}{n}>[xy])=(?P<{k}low{n}>{_NUMBER}){to}(?:[xy]=)?(?P<{k}high{n}>{_NUMBER})"
    for k in "kl"
  )
  return (
    rf"(?:{_DET}(?P<owner{n}>{_NAME})(?:['’]s?)?,? )?(?:{_DET}(?:box|span|extent|range|outline|interval)s? )?"
    rf"(?:(?:spans?|spanning|extends?|reaches|runs|covers|of|from|at|is|which|lies) |\()*"
    rf"{first}(?:(?:,| and|, and) (?:from )?{second})?"
  )


_RANGES = re.compile(
  rf"{_spans('1')}{_WITHIN}(?:(?P<inside>{_INSIDE})|{_AROUND}) {_spans('2')}", re.I
)


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
  role, key = _named(ROLES, group["role"])
  key_role, own_key = _KEYS.get((group["key"] or "").lower(), ("", ""))
  axis = {"horizontal": "x", "vertical": "y"}.get(
    (group["along"] or "").lower(), group["along"] or group["axis"] or ""
  )
  if key in ("gap", "d", "overlap"):
    role = {"x": "horizontal", "y": "vertical"}.get(axis, "")
  else:
    key = own_key or key or axis.lower()
  role = role or key_role
  if group["ends"]:
    edges = _named(_ENDS, group["ends"])
    role = role or edges[key == "y"]
  owner = group["owner"] or group["of"] or group["in"] or group["for"] or group["then"] or ""
  return Side(_value(group["value"]), key, role, owner)


def _named(table: dict[str, tuple[str, str]], words: str | None) -> tuple[str, str]:
  for pattern, named in table.items():
    if words and re.match(rf"(?:{pattern})(?![\w])", f"{words} x=", re.I):
      return named
  return "", ""


def _joiner(text: str, group: Sequence[Written]) -> str:
  between = (text[a.end : b.start] for a, b in zip(group, group[1:], strict=False))
  return " or " if any(re.search(r"\bor\b", words) for words in between) else ", "


def _is_supposed(text: str, written: Written) -> bool:
  start = max((m.end() for m in _CLAUSE_END.finditer(text, 0, written.start)), default=0)
  after = re.match(r"[ ,]*(?:would|should|could)\b", text[written.end :])
  return bool(after or _HYPOTHETICAL.search(text, start, written.start))


def _value(digits: str) -> float:
  return float(digits) if "." in digits else int(digits)
