"""Ranges of settings: each says which values it holds, and in words which are allowed."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST = 2**31 - 1
"""Largest whole number by default: counters of JAX have 32 bits."""


class Range(NamedTuple):
  """The allowed values of a setting."""

  text: str
  """What is allowed, after "it must be" or "choose"."""
  holds: Callable[[Any], bool]
  names: tuple[str, ...] = ()
  """All allowed values, if they are names."""


def whole(least: int, most: int = MOST, *others: int) -> Range:
  """Returns the range of whole numbers from `least` to `most`; `others` are allowed besides, e.g. −1 for "all"."""
  text = f"at least {least}" if most >= MOST else f"from {least} to {most}"
  text = " or ".join([*map(str, others), text])
  return Range(text, lambda value: value in others or least <= value <= most)


def at_least(least: float) -> Range:
  """Returns the range of numbers that are at least `least`."""
  return Range(f"at least {least:g}", lambda value: value >= least)


def above(least: float) -> Range:
  """Returns the range of numbers above `least`."""
  return Range(f"above {least:g}", lambda value: value > least)


def between(least: float, most: float, *, with_least: bool = True, with_most: bool = True) -> Range:
  """Returns the range of numbers between two bounds; both belong to it unless the arguments say otherwise."""
  if with_least and with_most:
    text = f"from {least:g} to {most:g}"
  else:
    text = (
      f"{'at least' if with_least else 'above'} {least:g} and "
      f"{'at most' if with_most else 'below'} {most:g}"
    )
  return Range(
    text,
    lambda value: (
      (least <= value if with_least else least < value)
      and (value <= most if with_most else value < most)
    ),
  )


SHARE = between(0, 1)
ANY = Range("any number", lambda value: True)


def one_of(*names: str) -> Range:
  """Returns the range of these names; "" stands for none of them."""
  shown = ", ".join(name or "'' (none)" for name in names)
  return Range(f"one of {shown}", lambda value: value in names, names)


def each(item: Range, least: int = 0, most: int | None = None) -> Range:
  """Returns the range of tuples whose items are in the range `item`; they have `least` to `most` items."""
  if most is None:
    count = "" if least == 0 else f"{least} or more "
  else:
    count = f"{least} " if least == most else f"{least} to {most} "
  text = f"a tuple of {count}items, each {item.text}"
  return Range(
    text,
    lambda value: (
      least <= len(value) <= (len(value) if most is None else most)
      and all(_is_like(item, part) and item.holds(part) for part in value)
    ),
  )


def _is_like(item: Range, part: Any) -> bool:
  """Returns whether an item has the type that its range compares: a name, or a number."""
  return isinstance(part, str) if item.names else type(part) in (int, float)


def _is_pair_of_sizes(pair: Any) -> bool:
  return (
    isinstance(pair, tuple)
    and len(pair) == 2
    and all(type(size) is int for size in pair)
    and 1 <= pair[0] <= MOST
    and 0 <= pair[1] <= MOST
  )


SHAPE = Range("a pair (tokens, patches): tokens at least 1, patches at least 0", _is_pair_of_sizes)
SHAPES = Range(
  "one or more pairs (tokens, patches), e.g. ((512, 2048), (2048, 2048)): tokens at least 1, patches at least 0",
  lambda value: bool(value) and all(map(_is_pair_of_sizes, value)),
)


def texts(least: int) -> Range:
  """Returns the range of tuples of at least so many texts."""
  return Range(
    f"a tuple of {least} or more texts" if least else "a tuple of texts",
    lambda value: len(value) >= least and all(isinstance(text, str) and text for text in value),
  )


def _is_source(source: Any) -> bool:
  match source:
    case (str(), str(), int() | float() as weight):
      return weight > 0
  return False


SOURCES = Range(
  "a tuple of (conversations, images, weight), e.g. (('more.jsonl', 'images', 0.5),): weights above 0",
  lambda value: all(map(_is_source, value)),
)


def weighted(names: Sequence[str], weight: Range) -> Range:
  """Returns the range of tuples of pairs (name, weight), with one pair or more."""

  def is_entry(entry: Any) -> bool:
    return (
      isinstance(entry, tuple)
      and len(entry) == 2
      and entry[0] in names
      and type(entry[1]) in (int, float)
      and weight.holds(entry[1])
    )

  return Range(
    f"one or more pairs (name, weight), e.g. (({names[0]!r}, 1.0),): names are {', '.join(names)}, "
    f"a weight is {weight.text}",
    lambda value: bool(value) and all(map(is_entry, value)),
  )


Table = Mapping[str, Range]
"""Dotted name of a leaf → its range."""


def in_group(group: str, ranges: Table) -> dict[str, Range]:
  """Returns the ranges of the leaves of a group, by their names from the root."""
  return {f"{group}.{name}": of_leaf for name, of_leaf in ranges.items()}


def problem(name: str, value: Any, allowed: Range | None) -> str | None:
  """Returns what is wrong with a leaf's value and what is allowed; None for a value in its range.

  NaN, infinity and NUL characters are refused everywhere; None stands for an optional leaf without a value.
  """
  if value is None:
    return None
  if bad := _unusable(value):
    return f"{name} is {value!r}; {bad}"
  if type(value) is int and abs(value) > MOST and (not allowed or not allowed.holds(value)):
    return f"{name} is {value}; it must be at most {MOST} (32 bits)"
  if allowed is None or allowed.holds(value):
    return None
  if allowed.names:
    shown = ", ".join(name or "'' (none)" for name in allowed.names)
    return f"{name} is {value!r}; choose one of {shown}"
  return f"{name} is {value!r}; it must be {allowed.text}"


def _unusable(value: Any) -> str:
  """Returns why no setting may hold a value: it is not finite, or has a NUL character; "" for all other values."""
  if isinstance(value, tuple):
    return next(filter(None, map(_unusable, value)), "")
  if isinstance(value, float) and not math.isfinite(value):
    return "numbers must be finite"
  if isinstance(value, str) and "\0" in value:
    return "text must not have NUL characters"
  return ""
