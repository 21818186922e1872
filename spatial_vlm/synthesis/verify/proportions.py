"""Checks shares, multiples and angles of a Reasoning: "30% of the image", "half of the bed", "twice as wide".

Shares and multiples must follow from the boxes. An angle follows from none, so it must only agree with the words next
to it: what is perpendicular meets at 90 degrees.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from spatial_vlm.answers import Box
from spatial_vlm.data.measurements import any_of
from spatial_vlm.data.relations import gaps, offsets, size
from spatial_vlm.synthesis.verify.written_values import Claim, read_claim

_FRACTIONS = {
  **{"half": 1 / 2, "one half": 1 / 2, "a half": 1 / 2, "1/2": 1 / 2, "½": 1 / 2},
  **{"a third": 1 / 3, "one third": 1 / 3, "two thirds": 2 / 3, "1/3": 1 / 3, "2/3": 2 / 3},
  **{"a quarter": 1 / 4, "one quarter": 1 / 4, "a fourth": 1 / 4, "one fourth": 1 / 4},
  **{"three quarters": 3 / 4, "three fourths": 3 / 4, "1/4": 1 / 4, "3/4": 3 / 4},
  **{"a fifth": 1 / 5, "one fifth": 1 / 5, "1/5": 1 / 5, "a tenth": 1 / 10, "one tenth": 1 / 10},
  **{"⅓": 1 / 3, "⅔": 2 / 3, "¼": 1 / 4, "¾": 3 / 4},
}
_IMAGE = r"(?:image|picture|photo(?:graph)?|frame|scene)"
_SIDE = r"(?:width|height|length|area|size|surface)"
_REGIONS = r"(?<!left )(?<!right )(?<!upper )(?<!lower )(?<!top )(?<!bottom )(?<!other )(?<!first )(?<!second )"
"""Words that make a fraction a place: "the left half of the image"."""
_PERCENT_TOLERANCE, _FRACTION_TOLERANCE, _ROUNDED_TOLERANCE = 1.0, 7.0, 5.0
"""Allowed differences of a written percentage, a fraction in words and a rounded percentage, in percent."""
_MULTIPLE_TOLERANCE = 0.1
_FILLS = re.compile(r"\b(?:fill|cover|occup|tak(?:e|es|ing) up)", re.IGNORECASE)
_APART = re.compile(r"\b(?:apart|away|distan\w*|gaps?|separat\w*|between)\b", re.IGNORECASE)
_AXES = (
  re.compile(r"\b(?:width|wide[r]?|horizontal\w*)\b", re.IGNORECASE),
  re.compile(r"\b(?:height|high(?:er)?|tall(?:er)?|vertical\w*)\b", re.IGNORECASE),
)
_OWN_SIDES = re.compile(
  r"\b(?:it is|they are|as (?:wide|high|tall|long) as (?:wide|high|tall|long))\b"
)
"""Words that compare an object's width with its own height."""
_ANGLE = re.compile(r"\b(\d+(?:\.\d+)?)(?:[- ]?degrees?\b|[- ]degree\b| ?°)")
_ANGLES = (
  (re.compile(r"\bperpendicular|\bright[- ]angle|\borthogonal", re.IGNORECASE), (90.0, 270.0)),
  (re.compile(r"\bparallel|\bsame direction|\baligned", re.IGNORECASE), (0.0, 180.0, 360.0)),
  (re.compile(r"\bopposite direction|\bfac\w+ away", re.IGNORECASE), (180.0,)),
)
"""Words → the angles that they allow."""
_DENIES = re.compile(
  r"\b(?:not|nor|neither|instead|rather|than|from|far|would need)\b|n['’]t\b", re.IGNORECASE
)
_ANGLE_TOLERANCE, _ROUNDED_ANGLE_TOLERANCE = 2.0, 15.0


class _Share(NamedTuple):
  """A share as the text writes it."""

  start: int
  end: int
  text: str
  percent: float
  tolerance: float
  target: str
  """Of what it is a share: "image", an object, or "" if the text does not say."""


def check_proportions(clause: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  """Returns the clause without its shares, multiples and angles, and an error for each that cannot be.

  Args:
    clause: a part of a Reasoning with numbers as digits.
    boxes: by lower-case name.
  """
  errors = []
  for check in (_check_angles, _check_multiples, _check_shares):
    clause, found = check(clause, boxes)
    errors += found
  return clause, errors


def _check_angles(clause: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  errors = []
  for match in _ANGLE.finditer(clause):
    around = _part_around(clause, match)
    angle = float(match[1])
    allowed = [value for words, values in _ANGLES if words.search(around) for value in values]
    is_rounded = not read_claim(clause[: match.start()], angle, 0).is_exact
    tolerance = _ROUNDED_ANGLE_TOLERANCE if is_rounded else _ANGLE_TOLERANCE
    is_decided = bool(allowed) and not _DENIES.search(around)
    if angle > 360 or (is_decided and all(abs(angle - value) > tolerance for value in allowed)):
      errors.append(f"{match[0]} does not agree with {around.strip()!r}")
  return _ANGLE.sub("", clause), errors


def _part_around(clause: str, match: re.Match[str]) -> str:
  """Returns the part of the clause between commas, "but" and "while" that contains the match."""
  breaks = [
    0,
    *(m.end() for m in re.finditer(r", (?!their|its)|\bbut\b|\bwhile\b", clause)),
    len(clause),
  ]
  start = max(place for place in breaks if place <= match.start())
  end = min(place for place in breaks if place >= match.end())
  part = clause[start:end]
  if match.start() - start > 0 and any(words.search(part) for words, _ in _ANGLES):
    return part
  return clause[max([0, *(p for p in breaks if p < start)]) : end]


def _check_multiples(clause: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  pattern = re.compile(
    r"\b(\d+(?:\.\d+)?)(?: times\b| ?×| ?x\b(?! ?=))(?= (?:as|the|\w+er|more)\b)"
  )
  errors = []
  for match in pattern.finditer(clause):
    after = " ".join(clause[match.end() :].split()[:5])
    axis = _axis(after)
    axis = _axis(clause[: match.start()]) if axis is None else axis
    claim = read_claim(clause[: match.start()], float(match[1]), 0)
    slack = (_MULTIPLE_TOLERANCE if claim.is_exact else _MULTIPLE_TOLERANCE / 2) * float(match[1])
    claim = Claim(claim.low - slack, claim.high + slack, claim.is_exact)
    own = axis is None or _OWN_SIDES.search(after)
    if not any(claim.allows(ratio) for ratio in _ratios(boxes.values(), axis, bool(own))):
      errors.append(f"{match[0]} {after} matches no ratio of boxes")
  return pattern.sub("", clause), errors


def _ratios(boxes: Iterable[Box], axis: int | None, own: bool) -> Iterator[float]:
  """Yields the ratios of sizes of each two boxes and, if `own`, of each box's sides."""
  boxes = list(dict.fromkeys(boxes))
  for a, b in itertools.permutations(boxes, 2):
    for i in (0, 1) if axis is None else (axis,):
      yield size(a)[i] / max(size(b)[i], 1)
    if axis is None:
      yield _area(a) / max(_area(b), 1)
  for box in boxes if own else ():
    width, height = size(box)
    yield from (width / max(height, 1), height / max(width, 1))


def _check_shares(clause: str, boxes: Mapping[str, Box]) -> tuple[str, list[str]]:
  errors, rest = [], clause
  for share in reversed(_shares(clause, boxes)):
    claim = _share_claim(clause[: share.start], share)
    owner = _last_name(clause[: share.start], boxes)
    if not any(
      claim.allows(100 * value) for value in _possible_shares(share, clause, boxes, owner)
    ):
      errors.append(f"{share.text} matches no share of {share.target or 'any box'}")
    rest = rest[: share.start] + rest[share.end :]
  return rest, errors[::-1]


def _shares(clause: str, boxes: Mapping[str, Box]) -> list[_Share]:
  """Returns the shares in order; a fraction in words only if it is one of the image or of an object."""
  of = (
    rf" of (?:the |its |their |this )?(?:(?:{_SIDE}) of (?:the )?)?"
    rf"(?P<target>(?:whole )?{_IMAGE}|{any_of(boxes)})"
  )
  fractions = "|".join(sorted((re.escape(f) for f in _FRACTIONS), key=len, reverse=True))
  fractions = fractions.replace(r"\ ", "[ -]")
  pattern = re.compile(
    rf"\b(?P<percent>\d+(?:\.\d+)?)(?: ?%| per ?cent\b)|{_REGIONS}(?<![\w/])(?P<fraction>{fractions})(?={of})",
    re.IGNORECASE,
  )
  found = []
  for match in pattern.finditer(clause):
    of_target = re.match(of, clause[match.end() :], re.IGNORECASE)
    target = of_target["target"].casefold() if of_target else ""
    target = "image" if re.search(rf"{_IMAGE}$", target) else target
    if match["percent"]:
      percent, tolerance = float(match["percent"]), _PERCENT_TOLERANCE
    else:
      percent = 100 * _FRACTIONS[match["fraction"].casefold().replace("-", " ")]
      tolerance = _FRACTION_TOLERANCE
    found.append(_Share(*match.span(), match[0], percent, tolerance, target))
  return found


def _share_claim(before: str, share: _Share) -> Claim:
  claim = read_claim(before, share.percent, share.tolerance)
  if claim.is_exact or abs(claim.low + claim.high - 2 * share.percent) < 1e-9:  # exact or rounded
    slack = share.tolerance if claim.is_exact else max(share.tolerance, _ROUNDED_TOLERANCE)
    return Claim(share.percent - slack, share.percent + slack, claim.is_exact)
  if claim.low >= share.percent - share.tolerance:
    return Claim(share.percent, float("inf"), False)
  return Claim(0, share.percent, False)


def _possible_shares(
  share: _Share, clause: str, boxes: Mapping[str, Box], owner: str
) -> Iterator[float]:
  """Yields all values, from 0 to 1, that a share may have in the clause."""
  every = list(dict.fromkeys(boxes.values()))
  axis = _axis(re.split(r"[,;]", clause[share.end :])[0])
  axes = (0, 1) if axis is None else (axis,)
  if share.target in ("", "image"):
    for box in [boxes[owner]] if owner else every:
      if axis is None:
        yield _area(box) / 1e6
      if axis is not None or not _FILLS.search(clause):
        yield from (size(box)[i] / 1000 for i in axes)
    if _APART.search(clause):
      pairs = [*itertools.combinations(every, 2)]
      yield from (
        measure(a, b)[i] / 1000 for a, b in pairs for measure in (offsets, gaps) for i in axes
      )
  if share.target == "image":
    return
  for a, b in itertools.permutations(every, 2):
    if share.target and boxes[share.target] not in (a, b):
      continue
    common = _overlaps(a, b)
    whole = boxes[share.target] if share.target else a
    if axis is None:
      yield common[0] * common[1] / max(_area(whole), 1)
      yield _area(b) / max(_area(whole), 1)
    for i in axes:
      yield common[i] / max(size(whole)[i], 1)
      yield size(b)[i] / max(size(whole)[i], 1)


def _last_name(text: str, boxes: Mapping[str, Box]) -> str:
  """Returns the object that the text names last; "" if it names several or none."""
  names = {name.casefold() for name in re.findall(any_of(boxes), text, re.IGNORECASE)}
  return names.pop() if len({boxes[name] for name in names}) == 1 else ""


def _axis(text: str) -> int | None:
  found = [axis for axis, words in enumerate(_AXES) if words.search(text)]
  return found[0] if len(found) == 1 else None


def _area(box: Box) -> int:
  return size(box)[0] * size(box)[1]


def _overlaps(a: Box, b: Box) -> tuple[int, int]:
  """Returns the lengths that two boxes share along x and y."""
  return max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
