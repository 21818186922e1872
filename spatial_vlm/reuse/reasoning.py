"""Reads the Reasoning step of a chain: measurements, then the comparison that decides.

`red circle spans x=100 to x=240, centre x=160; blue square spans x=600 to x=700, centre x=640; x=160 < x=640, so it is
left of it.` The last clause compares; each of its numbers is traced back to the measurement with the same key and
value, and so to its object (red circle) and its role there (centre). The code knows no relation.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from spatial_vlm.answers import Answer
from spatial_vlm.data.measurements import HOLDS, SIGN, Number, any_of, compared, read_numbers

BLANK = "\0"
"""Stands for a number that belongs to no object in a masked comparison."""

_CLAUSE_END = re.compile(r"[;.](?:\s+|$)")
_CONNECTIVE = re.compile(
  r"^(?:so|hence|thus|therefore|and|but),? |,? (?:so|hence|thus|therefore)\b.*"
)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The clause that decides, without its conclusion, and the numbers in it."""

  text: str
  numbers: tuple[Number, ...]
  names: tuple[str, ...]
  """All objects of the answer."""

  @property
  def holds(self) -> bool:
    """Whether every `a < b` in it is true."""
    pairs = compared(self.numbers, self.text)
    return all(HOLDS[sign](left.value, right.value) for left, sign, right in pairs)

  @property
  def with_names(self) -> str:
    """Each number preceded by its owner: `red circle x=160 < blue square x=640`."""
    return self._rewritten(
      lambda text: text,
      lambda n: f"{'' if n.named else n.owner} {self.text[n.start : n.end]}".lstrip(),
    )

  def masked(self, letters: Mapping[str, str]) -> str:
    """Returns the comparison without objects and numbers: `X centre x < Y centre x`.

    A number that belongs to no object leaves its key and a BLANK. `letters` maps each (casefolded) name to its letter;
    any other object becomes "another object".
    """

    def letter(name: str) -> str:
      return letters.get(name.casefold(), "another object")

    def words(text: str) -> str:
      pattern = any_of([*self.names, *letters])
      return re.sub(pattern, lambda match: letter(match[0]), text, flags=re.IGNORECASE)

    def number(n: Number) -> str:
      if n.owner:
        return " ".join(filter(None, ("" if n.named else letter(n.owner), n.role, n.key)))
      return f"{n.role} {n.key}={BLANK}" if n.key else BLANK

    return " ".join(self._rewritten(words, number).split())

  @property
  def loose_values(self) -> tuple[float, ...]:
    """Numbers that belong to no object, in the order of the BLANKs."""
    return tuple(number.value for number in self.numbers if not number.owner)

  def _rewritten(self, words: Callable[[str], str], number: Callable[[Number], str]) -> str:
    ends = [0, *(n.end for n in self.numbers)]
    pieces = (
      words(self.text[end : n.start]) + number(n)
      for end, n in zip(ends, self.numbers, strict=False)
    )
    return "".join(pieces) + words(self.text[ends[-1] :])


def read_comparison(answer: Answer, names: Iterable[str] = ()) -> Comparison:
  """Returns the comparison that the Reasoning of a chain ends in.

  Objects are recognized by the boxes of the Caption and by `names`. A comparison that names no object ("gap=0") gets
  the objects that were measured ("red circle to blue square gap=0").
  """
  measurements, text = _split(answer.steps["reasoning"])
  names = tuple(dict.fromkeys((*answer.boxes, *names)))
  numbers = _trace(list(read_numbers(text, names)), text, list(read_numbers(measurements, names)))
  about = _mentioned(measurements, names)
  if about and not _mentioned(text, names) and numbers and not any(n.owner for n in numbers):
    objects = f"{' to '.join(about)} "
    text, shift = objects + text, len(objects)
    numbers = [dataclasses.replace(n, start=n.start + shift, end=n.end + shift) for n in numbers]
  return Comparison(text, tuple(numbers), names)


def _split(reasoning: str) -> tuple[str, str]:
  """Splits off the last clause that compares (or else the last clause), without its conclusion."""
  clauses = [clause.strip() for clause in _CLAUSE_END.split(reasoning) if clause.strip()]
  clauses = clauses or [reasoning]
  last = max((i for i, c in enumerate(clauses) if SIGN.search(c)), default=len(clauses) - 1)
  return "; ".join(clauses[:last]), _CONNECTIVE.sub("", clauses[last]) or clauses[last]


def _trace(numbers: Sequence[Number], text: str, measured: Sequence[Number]) -> list[Number]:
  """Returns the numbers of a comparison with the owners and roles of their measurements.

  If several measurements match, two different objects are preferred to one, then equal roles, then the earlier
  measurement.
  """
  traced: dict[int, Number] = {}
  for left, _, right in compared(numbers, text):
    known = [traced[left.start]] if left.start in traced else _sources(left, measured)
    traced[left.start], traced[right.start] = min(
      itertools.product(known, _sources(right, measured)),
      key=lambda pair: (pair[0].owner == pair[1].owner, pair[0].role != pair[1].role),
    )
  return [traced.get(n.start, dataclasses.replace(n, named=bool(n.owner))) for n in numbers]


def _sources(number: Number, measured: Sequence[Number]) -> list[Number]:
  """Returns `number` with the owner and role of each measurement of its key and value, or those of the text."""
  same = [
    m for m in measured if m.owner and m.key and (m.key, m.value) == (number.key, number.value)
  ]
  own = [m for m in same if m.owner == number.owner]
  if number.named or own or (number.owner and not same):
    role = number.role or (own[0].role if own else "")
    return [dataclasses.replace(number, role=role, named=True)]
  found = [dataclasses.replace(number, owner=m.owner, role=number.role or m.role) for m in same]
  return found or [number]


def _mentioned(text: str, names: Sequence[str]) -> list[str]:
  return list(dict.fromkeys(re.findall(any_of(names), text, re.IGNORECASE)))
