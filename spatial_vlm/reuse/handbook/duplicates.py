"""Equal behaviors become one, and a full handbook drops the least useful ones; both in time n·log n."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Sequence

from spatial_vlm.reuse.handbook.behavior import Behavior


def distinct(behaviors: Iterable[Behavior]) -> tuple[Behavior, ...]:
  """Resolves equal behaviors in the place of the first, in time linear in their number; names become unique."""
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
  return _uniquely_named(_resolve(group) for group in groups if group)


def _keys(behavior: Behavior) -> Iterator[tuple[str, ...]]:
  """Yields what makes two behaviors equal: the relation with the name, the instruction or a question."""
  yield behavior.relation, "name", behavior.name
  yield behavior.relation, "instruction", _plain(behavior.instruction)
  for question in behavior.questions:
    yield behavior.relation, "question", question


def merge_equal(behaviors: Iterable[Behavior]) -> list[Behavior]:
  """Merges behaviors whose instructions are equal up to case, articles and punctuation, in the place of the first."""
  same: dict[str, list[Behavior]] = collections.defaultdict(list)
  for behavior in behaviors:
    same[_plain(behavior.instruction)].append(behavior)
  return [merge(group) for group in same.values()]


def _resolve(group: Sequence[Behavior]) -> Behavior:
  """Returns the behavior of highest rank, after equal instructions were merged.

  Questions and recalls of the others join it. Their provenance does not: those records gave another instruction.
  """
  merged = merge_equal(group)
  best = max(merged, key=lambda b: b.rank)
  return dataclasses.replace(merge(merged), provenance=best.provenance)


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
    named[name] = behavior if number == 1 else dataclasses.replace(behavior, name=name)
  return tuple(named.values())


@functools.lru_cache(maxsize=100_000)
def _plain(instruction: str) -> str:
  """Returns words and comparison signs, in order: "X < Y" and "Y < X" are different procedures."""
  words = re.findall(r"\w+|[<>=≤≥]+", instruction.casefold())
  return " ".join(word for word in words if word not in ("the", "a", "an"))


def within_limits(
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
