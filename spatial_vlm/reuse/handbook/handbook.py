"""The handbook that collects behaviors.

A behavior is extracted from training records only and stores which, so that a handbook which contains evaluation
records can be refused.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

from spatial_vlm.data.split_guard import Pair, pair_digest
from spatial_vlm.evaluation.results import RecallCount
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.duplicates import distinct, within_limits

VERSION = 3
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
class Handbook:
  """Behaviors in the order in which they were added, within two limits; every change returns a new handbook.

  Behaviors of one relation that share a name, a question or (up to case, articles and punctuation) an instruction
  become one: that of highest `rank`, with the records of its own instruction. Behaviors of different relations stay
  apart: the later of two with one name gets a numbered name. When a limit is exceeded, the behavior of least `rank` is
  dropped first, of equals the latest.
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
    kept = within_limits(distinct(self.behaviors), self.max_entries, self.max_tokens)
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
    joined = (*self.behaviors, *behaviors)
    if recalls:
      joined = tuple(
        b.with_recalls(recalls[b.name]) if b.name in recalls else b for b in distinct(joined)
      )
    return dataclasses.replace(self, behaviors=joined)

  @property
  def splits(self) -> list[str]:
    """The splits of the records that behaviors come from."""
    return sorted({r.partition(":")[0] for b in self.behaviors for r in b.provenance})

  def records_of(self, splits: Collection[str], pairs: Iterable[Pair]) -> dict[str, list[str]]:
    """Returns name of a behavior → its records that are in `splits`, or whose pair is among `pairs`.

    A pair whose image is "" is that of every record with this caption.
    """
    known = {pair_digest(pair) for pair in pairs}

    def is_among(record: str) -> bool:
      split, _, *pair = record.split(":")
      return split in splits or not known.isdisjoint(pair)

    shared = {b.name: [*filter(is_among, b.provenance)] for b in self.behaviors}
    return {name: records for name, records in shared.items() if records}

  def refuse_leaks(self, splits: Collection[str], pairs: Iterable[Pair] = ()) -> None:
    """Raises LeakError when a behavior comes from one of the evaluation `splits` or evaluation `pairs`."""
    for name, seen in self.records_of(splits, pairs).items():
      raise LeakError(
        f"{name} was extracted from {len(seen)} evaluation records (first: {seen[0]}); extract behaviors from training "
        "records only, or evaluate on others"
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
