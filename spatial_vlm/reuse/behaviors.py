"""Behaviors (named one-line procedures) and the handbook that collects them.

A behavior is extracted from training records only and stores which, so that a handbook which contains evaluation
records can be refused.
"""

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from etils import epath

from spatial_vlm.evaluation.results import RecallCount

VERSION = 2
NAME = re.compile(r"behavior_[a-z0-9_]+")
"""Names of behaviors."""
_FIELDS = {
  "name": str,
  "instruction": str,
  "relation": str,
  "questions": list,
  "provenance": list,
  "tokens": int,
  "recalls": int,
  "successes": int,
  "saved_tokens": float,
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
  relation: str
  """Key of the relation that it decides ("left of"); "" where the questions state none that is known."""
  questions: tuple[str, ...]
  """Object-masked questions that the behavior answers ("The X is left of the Y.")."""
  provenance: tuple[str, ...]
  """Training records, written `SPLIT:ID`, from whose chains the behavior was extracted."""
  tokens: int
  """Length of `line`, in tokens of the policy that reads it."""
  recalls: int = 0
  """Number of times that `evaluate` recalled the behavior (see `Handbook.upsert`)."""
  successes: int = 0
  """Number of these recalls that were answered right."""
  saved_tokens: float = 0.0
  """Mean number of generated tokens that a recall saves: measured by `evaluate`, or else estimated from the chains."""

  def __post_init__(self):
    if not NAME.fullmatch(self.name):
      raise ValueError(
        f"name {self.name!r} does not match {NAME.pattern!r}; write it as behavior_left_of"
      )
    if not self.instruction.strip() or "\n" in self.instruction:
      raise ValueError(f"instruction {self.instruction!r} of {self.name} must be one line of text")
    if not self.questions or not all(self.questions):
      raise ValueError(f"{self.name} answers no question; give at least one object-masked question")
    if not self.provenance or not all(":" in record for record in self.provenance):
      raise ValueError(
        f"provenance of {self.name} must list records as 'SPLIT:ID'; got {self.provenance[:3]}"
      )
    if self.tokens < 1 or not 0 <= self.successes <= self.recalls:
      raise ValueError(
        f"{self.name} needs tokens ≥ 1 and 0 ≤ successes ≤ recalls; got tokens={self.tokens}, "
        f"successes={self.successes}, recalls={self.recalls}"
      )
    if not math.isfinite(self.saved_tokens):
      raise ValueError(f"saved_tokens of {self.name} is {self.saved_tokens}; it must be finite")

  @property
  def line(self) -> str:
    """The text that a question carries."""
    return f"{self.name}: {self.instruction}"

  @property
  def utility(self) -> float:
    """Generated tokens saved in right answers: recalls × success rate × saved tokens; 0 without a recall."""
    return self.successes * self.saved_tokens

  @property
  def rank(self) -> tuple[float, bool, int, int]:
    """Order in which behaviors are kept: by utility, then by support, then the shortest.

    A behavior that was never recalled stands below those that proved useful and above those whose recalls saved
    nothing, answered nothing right or made answers longer.
    """
    return self.utility, not self.recalls, len(self.provenance), -self.tokens

  def with_recalls(self, count: RecallCount) -> Self:
    """Returns the behavior with further recalls counted.

    Measured saved tokens replace an estimate, and are averaged with those of earlier recalls.
    """
    saved = self.saved_tokens if count.saved_tokens is None else count.saved_tokens
    recalls = self.recalls + count.recalls
    total = self.recalls * self.saved_tokens + count.recalls * saved
    return dataclasses.replace(
      self,
      recalls=recalls,
      successes=self.successes + count.successes,
      saved_tokens=total / recalls if recalls else saved,
    )


@dataclasses.dataclass(frozen=True)
class Handbook:
  """Behaviors in the order in which they were added, within two limits; every change returns a new handbook.

  Behaviors of one relation that share a name, a question or (up to case, articles and punctuation) an instruction are
  merged. Behaviors of different relations never are: the later of two with one name gets a numbered name. When a limit
  is exceeded, the behavior of least `rank` is dropped first, of equals the latest.
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
    self, behaviors: Iterable[Behavior], recalls: Mapping[str, RecallCount] = MappingProxyType({})
  ) -> Self:
    """Returns the handbook with `behaviors` added to or merged into those that are there.

    Args:
      behaviors: the behaviors to add.
      recalls: name of a behavior → further recalls of it. They are counted before the limits apply, so that behaviors
        that proved useful stay. Names of unknown behaviors are ignored.
    """
    counted = (
      b.with_recalls(recalls[b.name]) if b.name in recalls else b
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
  """Merges equal behaviors in the place of the first, in time linear in their number; names become unique."""
  groups: list[list[Behavior]] = []
  places: dict[tuple[str, ...], int] = {}  # key of a behavior → its group
  for behavior in behaviors:
    same = sorted({places[key] for key in _keys(behavior) if key in places})
    place = same[0] if same else len(groups)
    if not same:
      groups.append([])
    groups[place].append(behavior)
    for other in same[1:]:
      groups[place] += groups[other]
      groups[other] = []
    for member in groups[place] if same[1:] else [behavior]:
      places.update(dict.fromkeys(_keys(member), place))
  return _uniquely_named(merge(group) for group in groups if group)


def _keys(behavior: Behavior) -> Iterator[tuple[str, ...]]:
  """Yields what makes two behaviors equal: the relation with the name, the instruction or a question."""
  yield behavior.relation, "name", behavior.name
  yield behavior.relation, "instruction", *_plain(behavior.instruction)
  for question in behavior.questions:
    yield behavior.relation, "question", question


def merge(group: Sequence[Behavior]) -> Behavior:
  """Returns name and instruction of the behavior of highest rank, with everything else joined."""
  if len(group) == 1:
    return group[0]
  best = max(group, key=lambda b: b.rank)
  recalls = sum(b.recalls for b in group)
  saved = sum(b.recalls * b.saved_tokens for b in group)
  return dataclasses.replace(
    best,
    questions=tuple(dict.fromkeys(q for b in (best, *group) for q in b.questions)),
    provenance=tuple(sorted({record for b in group for record in b.provenance})),
    recalls=recalls,
    successes=sum(b.successes for b in group),
    saved_tokens=saved / recalls if recalls else best.saved_tokens,
  )


def _uniquely_named(behaviors: Iterable[Behavior]) -> tuple[Behavior, ...]:
  """Numbers the names that behaviors of different relations share: behavior_a, behavior_a_2."""
  named: dict[str, Behavior] = {}
  for behavior in behaviors:
    name, number = behavior.name, 1
    while name in named:
      number += 1
      name = f"{behavior.name}_{number}"
    named[name] = dataclasses.replace(behavior, name=name)
  return tuple(named.values())


def _plain(instruction: str) -> list[str]:
  """Returns words and comparison signs, in order: "X < Y" and "Y < X" are different procedures."""
  words = re.findall(r"\w+|[<>=≤≥]+", instruction.casefold())
  return [word for word in words if word not in ("the", "a", "an")]


def _within(
  behaviors: tuple[Behavior, ...], max_entries: int, max_tokens: int
) -> tuple[Behavior, ...]:
  entries, tokens = len(behaviors), sum(b.tokens for b in behaviors)
  dropped = set()
  for i in sorted(range(entries), key=lambda i: (behaviors[i].rank, -i)):
    if entries <= max_entries and tokens <= max_tokens:
      break
    dropped.add(i)
    entries, tokens = entries - 1, tokens - behaviors[i].tokens
  return tuple(b for i, b in enumerate(behaviors) if i not in dropped)
