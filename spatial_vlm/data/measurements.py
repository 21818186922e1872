"""Numbers in a text about objects: `red circle spans x=100 to x=240, centre x=160; x=160 < x=640`.

Each number is assigned to the object that the text describes with it. Relations play no role here.
"""

import dataclasses
import itertools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence

_NUMBER = r"(?:(?:\b(?P<role>[A-Za-z]+) )?\b(?P<key>[A-Za-z]+)=)?\b(?P<value>\d+(?:\.\d+)?)\b"
_FUNCTION_WORDS = frozenset(("and", "at", "by", "from", "has", "is", "of", "or", "to", "with"))
SIGN = re.compile(r" (<=|>=|[<>=≤≥]) ")
HOLDS = {"<": operator.lt, ">": operator.gt, "=": operator.eq}
HOLDS |= {"<=": operator.le, ">=": operator.ge, "≤": operator.le, "≥": operator.ge}

_FEW_WORDS = r"(?=(?:[A-Za-z'’-]+ ){0,5}?\(?(?:\w+=)?\d)"
_SPELLINGS = (
  (re.compile(r"(?<=\d) ?(?:px|pixels?)\b"), ""),
  (re.compile(r"(?<=[A-Za-z]) ?= ?(?=\d)"), "="),
  (
    re.compile(r"\b([xywh])(?:[- ]coordinate)?(?: ?: ?| (?:is|of|at) )(?=\d)", re.IGNORECASE),
    r"\1=",
  ),
  (re.compile(r"\b([xywh]) ?[≈~] ?(?=\d)", re.IGNORECASE), r"about \1="),
  (re.compile(rf"(?<=\d)\)? (?:is|are) (?:less|smaller) than {_FEW_WORDS}"), " < "),
  (re.compile(rf"(?<=\d)\)? (?:is|are) (?:greater|larger|more) than {_FEW_WORDS}"), " > "),
  (re.compile(r"\s*(<=|>=|[<>≤≥])\s*"), r" \1 "),
)
"""Spellings of keys and comparisons → the spelling that `read_numbers` parses."""


@dataclasses.dataclass(frozen=True)
class Number:
  """A number in a text: `x=160`, described as the centre of the red circle."""

  start: int
  end: int
  key: str
  value: float
  """An int if it is written as one."""
  role: str
  """The word before its key, unless it is a function word; it belongs to the number's text."""
  owner: str
  """The object that it belongs to; "" if that is ambiguous."""
  named: bool
  """Whether the text names the owner directly before the number, so that it need not be repeated."""


def read_numbers(text: str, names: Iterable[str]) -> Iterator[Number]:
  """Yields numbers in order, each assigned to the object named before it.

  A number about two objects ("the gap between A and B is gap=40") belongs to neither.
  """
  owners: list[str] = []
  after_number, name_end = False, 0
  for match in re.finditer(f"(?P<name>{any_of(names)})|{_NUMBER}", text, re.IGNORECASE):
    if match["name"]:
      owners = [match["name"]] if after_number else [*owners, match["name"]]
      after_number, name_end = False, match.end()
      continue
    key, role, start = match["key"] or "", match["role"] or "", match.start()
    if role.lower() in _FUNCTION_WORDS:
      role, start = "", match.start("key")
    named = not after_number and bool(owners) and not text[name_end:start].strip()
    owner = owners[-1] if named or len(owners) == 1 else ""
    after_number = True
    yield Number(start, match.end(), key, _value(match["value"]), role, owner, named)


def compared(numbers: Sequence[Number], text: str) -> Iterator[tuple[Number, str, Number]]:
  """Yields neighbouring numbers with the comparison sign between them."""
  for left, right in itertools.pairwise(numbers):
    if sign := SIGN.search(text[left.end : right.start]):
      yield left, sign[1], right


def owner_after(number: Number, text: str, names: Iterable[str]) -> str:
  """Returns the object that the text names right after a number, as in "x=160 (cat)" or "160 for the cat"; or ""."""
  match = re.match(
    rf"\)?\s*(?:\(|for |of )\s*(?:the |an? )?({any_of(names)})", text[number.end :], re.IGNORECASE
  )
  return match[1] if match else ""


def plain_spelling(text: str) -> str:
  """Returns the text with keys and comparisons as `read_numbers` and `compared` read them.

  >>> plain_spelling("The cat's x-coordinate is 200, x: 200<750px")
  "The cat's x=200, x=200 < 750"
  """
  for spelling, plain in _SPELLINGS:
    text = spelling.sub(plain, text)
  return text


def any_of(names: Iterable[str]) -> str:
  """Returns a pattern of any of `names` as whole words, longer ones first; without names it matches nothing."""
  longest_first = sorted({*names} - {""}, key=lambda name: (-len(name), name))
  return rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b" if longest_first else "(?!)"


def _value(digits: str) -> float:
  return float(digits) if "." in digits else int(digits)
