"""Behaviors (named one-line procedures) and the handbook that collects them.

A behavior is extracted from training records only and stores which, so that a handbook which contains evaluation
records can be refused.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

from etils import epath

VERSION = 1
_NAME = re.compile(r"behavior_[a-z0-9_]+")
_FIELDS = {
  "name": str,
  "instruction": str,
  "questions": list,
  "provenance": list,
  "tokens": int,
  "uses": int,
}


class HandbookError(ValueError):
  """Raised for a handbook that cannot be read; the message names the file and the place in it."""


class LeakError(ValueError):
  """Raised for a behavior that was extracted from evaluation records."""


@dataclasses.dataclass(frozen=True)
class Behavior:
  """A procedure that the policy used in many correct answers.

  Raises ValueError when a field cannot be used. A behavior without provenance is refused, because nothing could show
  that it is free of evaluation records.
  """

  name: str
  """`behavior_` and lower-case letters, digits and underscores; the short answer cites it."""
  instruction: str
  """The procedure, on one line."""
  questions: tuple[str, ...]
  """Object-masked questions that the behavior answers ("The X is left of the Y.")."""
  provenance: tuple[str, ...]
  """Training records, written `SPLIT:ID`, from whose chains the behavior was extracted."""
  tokens: int
  """Length of `line`, in tokens of the policy that reads it."""
  uses: int = 0
  """Number of times that `evaluate` recalled the behavior (see `Handbook.upsert`)."""

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise ValueError(
        f"name {self.name!r} does not match {_NAME.pattern!r}; write it as behavior_left_of"
      )
    if not self.instruction.strip() or "\n" in self.instruction:
      raise ValueError(f"instruction {self.instruction!r} of {self.name} must be one line of text")
    if not self.questions or not all(self.questions):
      raise ValueError(f"{self.name} answers no question; give at least one object-masked question")
    if not self.provenance or not all(":" in record for record in self.provenance):
      raise ValueError(
        f"provenance of {self.name} must list records as 'SPLIT:ID'; got {self.provenance[:3]}"
      )
    if self.tokens < 1 or self.uses < 0:
      raise ValueError(
        f"{self.name} needs tokens ≥ 1 and uses ≥ 0; got {self.tokens} and {self.uses}"
      )

  @property
  def line(self) -> str:
    """The text that a question carries."""
    return f"{self.name}: {self.instruction}"

  @property
  def utility(self) -> tuple[int, int, int]:
    """Order in which behaviors are kept: recalled most often, then best supported, then shortest."""
    return self.uses, len(self.provenance), -self.tokens

  def merged(self, other: Self) -> Self:
    """Merges two behaviors: name and instruction of the one of greater utility, everything else joined."""
    best, rest = (self, other) if self.utility >= other.utility else (other, self)
    return dataclasses.replace(
      best,
      questions=tuple(dict.fromkeys(best.questions + rest.questions)),
      provenance=tuple(sorted({*best.provenance, *rest.provenance})),
      uses=best.uses + rest.uses,
    )


@dataclasses.dataclass(frozen=True)
class Handbook:
  """Behaviors in the order in which they were added, within two limits; every change returns a new handbook.

  No two behaviors share a name, a question or (up to case, articles and punctuation) an instruction. When a limit is
  exceeded, the behavior of least utility is dropped first, of equals the latest.
  """

  max_entries: int
  max_tokens: int
  """Limit on the sum of all lines, in tokens."""
  behaviors: tuple[Behavior, ...] = ()

  def __post_init__(self):
    if self.max_entries < 1 or self.max_tokens < 1:
      raise ValueError(
        f"a handbook needs limits of at least 1; got max_entries={self.max_entries}, max_tokens={self.max_tokens}"
      )
    kept = _within(_distinct(self.behaviors), self.max_entries, self.max_tokens)
    object.__setattr__(self, "behaviors", kept)

  def __len__(self) -> int:
    return len(self.behaviors)

  def __getitem__(self, name: str) -> Behavior:
    for behavior in self.behaviors:
      if behavior.name == name:
        return behavior
    raise KeyError(
      f"no behavior {name!r}; there are {[behavior.name for behavior in self.behaviors]}"
    )

  def upsert(
    self, behaviors: Iterable[Behavior], recalls: Mapping[str, int] = MappingProxyType({})
  ) -> Self:
    """Returns the handbook with `behaviors` added to or merged into those that are there.

    Args:
      behaviors: the behaviors to add.
      recalls: name of a behavior → further times that it was recalled. They are added to `uses` before the limits
        apply, so that behaviors that are recalled often stay. Names of unknown behaviors are ignored.
    """
    counted = (
      dataclasses.replace(b, uses=b.uses + recalls.get(b.name, 0))
      for b in _distinct((*self.behaviors, *behaviors))
    )
    return dataclasses.replace(self, behaviors=tuple(counted))

  def refuse_leaks(self, splits: Collection[str] = (), records: Collection[str] = ()) -> None:
    """Raises LeakError when a behavior comes from one of the evaluation `splits` or `records` (`SPLIT:ID`)."""
    splits, records = frozenset(splits), frozenset(records)
    for behavior in self.behaviors:
      seen = [r for r in behavior.provenance if r in records or r.partition(":")[0] in splits]
      if seen:
        raise LeakError(
          f"{behavior.name} was extracted from {len(seen)} evaluation records (first: {seen[0]}); extract behaviors "
          "from training records only, or evaluate on others"
        )

  def to_json(self) -> dict[str, Any]:
    """Returns the fields that `from_json` reads."""
    behaviors = [dataclasses.asdict(behavior) for behavior in self.behaviors]
    limits = {"max_entries": self.max_entries, "max_tokens": self.max_tokens}
    return {"version": VERSION, **limits, "behaviors": behaviors}

  @classmethod
  def from_json(cls, data: Any, source: str) -> Self:
    """Reads and checks what `to_json` wrote; `source` is the file that a HandbookError names."""
    header = {"version": int, "max_entries": int, "max_tokens": int, "behaviors": list}
    _check_fields(data, header, source)
    if data["version"] != VERSION:
      raise HandbookError(
        f"{source}: version is {data['version']}, readable is {VERSION}; run `behaviors` again"
      )
    behaviors = tuple(
      _read_behavior(b, f"{source}: behaviors[{i}]") for i, b in enumerate(data["behaviors"])
    )
    try:
      handbook = cls(data["max_entries"], data["max_tokens"], behaviors)
    except ValueError as error:
      raise HandbookError(f"{source}: {error}") from error
    if handbook.behaviors != behaviors:
      raise HandbookError(f"{source}: behaviors repeat each other or exceed the file's own limits")
    return handbook


def read_json(path: epath.PathLike) -> Any:
  """Reads a JSON file; raises HandbookError with the line where the JSON ends too early."""
  try:
    return json.loads(epath.Path(path).read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise HandbookError(f"{path}: not JSON ({error}); run `behaviors` again") from error


def _read_behavior(data: Any, place: str) -> Behavior:
  _check_fields(data, _FIELDS, place)
  for field in ("questions", "provenance"):
    for i, item in enumerate(data[field]):
      if not isinstance(item, str):
        raise HandbookError(f"{place}.{field}[{i}]: {item!r} is not text")
  try:
    return Behavior(**data | {field: tuple(data[field]) for field in ("questions", "provenance")})
  except ValueError as error:
    raise HandbookError(f"{place}: {error}") from error


def _check_fields(data: Any, fields: Mapping[str, type], place: str) -> None:
  if not isinstance(data, dict) or data.keys() != fields.keys():
    found = sorted(data) if isinstance(data, dict) else type(data).__name__
    raise HandbookError(f"{place}: expected the fields {sorted(fields)}, found {found}")
  for field, kind in fields.items():
    if type(data[field]) is not kind:
      raise HandbookError(f"{place}.{field}: expected {kind.__name__}, found {data[field]!r}")


def _distinct(behaviors: Iterable[Behavior]) -> tuple[Behavior, ...]:
  """Merges behaviors that share a name, a question or an instruction, in the place of the first."""
  kept: list[Behavior] = []
  for behavior in behaviors:
    same = [i for i, other in enumerate(kept) if _same(behavior, other)]
    for i in reversed(same):
      behavior = kept.pop(i).merged(behavior)
    kept.insert(same[0] if same else len(kept), behavior)
  return tuple(kept)


def _same(a: Behavior, b: Behavior) -> bool:
  return (
    a.name == b.name
    or _plain(a.instruction) == _plain(b.instruction)
    or not set(a.questions).isdisjoint(b.questions)
  )


def _plain(instruction: str) -> list[str]:
  """Returns words and comparison signs, in order: "X < Y" and "Y < X" are different procedures."""
  words = re.findall(r"\w+|[<>=≤≥]+", instruction.casefold())
  return [word for word in words if word not in ("the", "a", "an")]


def _within(
  behaviors: tuple[Behavior, ...], max_entries: int, max_tokens: int
) -> tuple[Behavior, ...]:
  kept = list(behaviors)
  while len(kept) > max_entries or sum(b.tokens for b in kept) > max_tokens:
    least = min(range(len(kept)), key=lambda i: (kept[i].utility, -i))
    kept.pop(least)
  return tuple(kept)
