"""The stage of the input pipeline that skips bad records, and what iterator states say about them."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain

from spatial_vlm.data.reading import BadRecordTally
from spatial_vlm.data.records import BadRecord
from spatial_vlm.process_rows import Shard


class SkipBadRecords(grain.IterDataset):
  """Yields `keep(element, tally)` of each element, except None.

  The tally is part of the iterator's state, so that a resumed run continues to count; so is the shard of the process,
  since another one reads other records.
  """

  def __init__(
    self,
    parent: grain.IterDataset,
    keep: Callable[[Any, Any], Any],
    tally: BadRecordTally,
    shard: Shard,
  ):
    super().__init__(parent)
    self._keep, self._tally, self._shard = keep, tally, shard

  def __iter__(self) -> grain.DatasetIterator:
    tally = copy.deepcopy(self._tally)
    return _SkipBadRecordsIterator(iter(self._parent), self._keep, tally, self._shard)


class _SkipBadRecordsIterator(grain.DatasetIterator):
  def __init__(
    self,
    parent: grain.DatasetIterator,
    keep: Callable[[Any, BadRecordTally], Any],
    tally: BadRecordTally,
    shard: Shard,
  ):
    super().__init__(parent)
    self._keep, self._tally, self._shard = keep, tally, shard

  def __next__(self) -> Any:
    kept = (self._keep(element, self._tally) for element in self._parent)
    return next(element for element in kept if element is not None)

  def get_state(self) -> dict[str, Any]:
    bad = {str(number): list(dataclasses.astuple(bad)) for number, bad in self._tally.bad.items()}
    shard = [list(self._shard.parts), self._shard.count]
    return {"parent": self._parent.get_state(), "bad": bad, "shard": shard}

  def set_state(self, state: dict[str, Any]) -> None:
    self._parent.set_state(state["parent"])
    self._tally.bad = _bad_from_json(state["bad"])


def skipped(state: dict[str, Any]) -> dict[int, BadRecord]:
  """Returns the bad records that a process has met, by number.

  Args:
    state: `get_state()` of an iterator of `pipeline.batches` or `pipeline.planned_batches`.
  """
  return _bad_from_json(_skip_state(state)["bad"])


def own_state(states: Sequence[dict[str, Any]], shard: Shard) -> dict[str, Any]:
  """Returns the state from which this process continues.

  It is that of a process that read the same rows. If there is none (another number of processes, or another mesh), each
  process continues after the batch that all had received, and counts every record that any of them skipped.

  Args:
    states: of all processes of the run that saved them.
    shard: the rows that this process reads.

  Raises:
    ValueError: no process read these rows, and `pipeline.batches` has skipped records. The records that replaced them
      depend on the rows of each process.
  """
  for state in states:
    if _shard_of(state) == shard:
      return state
  bad = {number: record for state in states for number, record in _skip_state(state)["bad"].items()}
  state = copy.deepcopy(states[0])
  own, before = _skip_state(state), _shard_of(state)
  if bad and own is not state:
    raise ValueError(
      f"{len(states)} processes have read this far and skipped {len(bad)} bad records; processes that read other rows "
      "cannot continue in their place: start as many on the same mesh, or start a new run in another --workdir"
    )
  own["bad"] = bad
  own["shard"] = [list(shard.parts), shard.count]
  rows_read = own["parent"]["next_index"] * before.count // len(before.parts)  # by all together
  own["parent"]["next_index"] = rows_read * len(shard.parts) // shard.count
  return state


def _shard_of(state: dict[str, Any]) -> Shard:
  parts, count = _skip_state(state)["shard"]
  return Shard(tuple(parts), count)


def _skip_state(state: dict[str, Any]) -> dict[str, Any]:
  """Returns the part of an iterator's state that belongs to `SkipBadRecords`."""
  while "bad" not in state:
    state = state["parent"]
  return state


def _bad_from_json(bad: dict[str, list]) -> dict[int, BadRecord]:
  return {int(number): BadRecord(*fields) for number, fields in bad.items()}
