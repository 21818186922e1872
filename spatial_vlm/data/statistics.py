"""Statistics of a set of records: sizes, balance of the labels, agreement of the validators."""

import collections
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from spatial_vlm.data.records import Record

UNANIMOUS, MOST, FEWER, UNKNOWN = "all", "two thirds or more", "fewer", "no votes"
STRATA = (UNANIMOUS, MOST, FEWER, UNKNOWN)
"""Groups by the share of validators who agree with the label; VSR keeps statements with two thirds or more."""


def stratum(record: Record) -> str:
  """Returns the group of `STRATA` that a record belongs to."""
  agreement = record.agreement
  if agreement is None:
    return UNKNOWN
  return UNANIMOUS if agreement == 1 else MOST if agreement >= 2 / 3 else FEWER


def describe(records: Sequence[Record]) -> dict[str, Any]:
  """Returns statistics as plain JSON; shares are in 0–1, or None without records.

  A caption is contrastive when it is true of one image and false of another: its words alone do not give the label.
  """
  labels = collections.defaultdict(set)
  for record in records:
    labels[record.caption].add(record.label)
  return {
    **_balance(records),
    "images": len({record.image for record in records}),
    "captions": len(labels),
    "contrastive_captions": sum(len(found) == 2 for found in labels.values()),
    "by_category": _by(records, lambda record: record.category),
    "by_relation": _by(records, lambda record: record.relation),
    "by_agreement": _by(records, stratum, STRATA),
  }


def _by(
  records: Iterable[Record], group: Callable[[Record], Hashable], order: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the balance within each group, in `order`, or with the largest group first."""
  groups = collections.defaultdict(list)
  for record in records:
    groups[group(record)].append(record)
  names = order or sorted(groups, key=lambda name: (-len(groups[name]), name))
  return {name: _balance(groups[name]) for name in names if name in groups}


def _balance(records: Sequence[Record]) -> dict[str, Any]:
  true = sum(record.label for record in records)
  return {"records": len(records), "true_share": true / len(records) if records else None}
