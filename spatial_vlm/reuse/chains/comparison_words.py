"""The words of a comparison, as tables of patterns: nouns and keys of quantities, verbs, signs and what joins them."""

import re

NAME = r"_a+_"
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
KEYS = {
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
ENDS = {
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
BE = (
  r"(?:is|are|was|lies|lie|lying|sits|stands|comes|remains|falls|being|located|situated|found|positioned|placed"
  r"|starts|begins|ends|stops|clearly|well|far|much|further|farther|still|only|just|slightly|even|also|thus|therefore"
  r"|in turn|itself|both|strictly|considerably|numerically|entirely|completely|fully)"
)
DET = r"(?:(?:the|an?|its|his|her|their|this) )?"
NUMBER = r"\d+(?:\.\d+)?(?![.\d]*\d)"
KEY = rf"(?:{'|'.join(sorted(KEYS, key=len, reverse=True))})"
WITHIN = (
  r"[ ,)]*(?:(?:and|which|that|both|so it) )*(?:(?:lies?|is|are|falls?|fits?|sits?|stays?|remains?) )?"
  r"(?:(?:fully|entirely|completely|wholly|well|totally|also|both|horizontally|vertically) )*"
)
INSIDE = r"(?:within|inside|contained (?:in|by|within)|enclosed by|between)"
AROUND = r"(?:contains?|covers?|encloses?|includes?|surrounds?|encompass(?:es)?)"
HYPOTHETICAL = re.compile(
  r"\b(?:if(?! (?:we|one|you) )|whether|would|should|could|requires?|needs?|needed|unless|instead of|rather than"
  r"|were)\b",
  re.I,
)
JOIN = re.compile(
  r"[\s,()]*(?:(?:and|or|as well as|while|whereas|both|also|but|vertically|horizontally|likewise"
  rf"|{DET}{NAME} is \w+er than it is \w+)\b[\s,()]*)*"
)
"""Words between comparisons that belong together."""
CLAUSE_END = re.compile(r"[;.!?](?=\s|$)")


def object_token(number: int) -> str:
  """Returns the word that stands for an object in a text."""
  return f"_{'a' * (number + 1)}_"


_ROLE_WORDS = [(re.compile(rf"\b(?:{words})\b", re.I), named) for words, named in ROLES.items()]


def role_before(words: str) -> tuple[str, str]:
  """Returns the role and key of the last noun of a quantity in the words before a number; ("", "") without one."""
  if not re.search(r"[a-z]{3}", words):  # as between the ends of a range
    return "", ""
  found = [(m.end(), named) for role, named in _ROLE_WORDS for m in role.finditer(f"{words} x=")]
  return max(found)[1] if found else ("", "")


def named(table: dict[str, tuple[str, str]], words: str | None) -> tuple[str, str]:
  for pattern, named in table.items():
    if words and re.match(rf"(?:{pattern})(?![\w])", f"{words} x=", re.I):
      return named
  return "", ""
