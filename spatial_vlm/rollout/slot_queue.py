"""Which request takes which slot: the host's side of continuous batching, without any array on a device.

Each part of the mesh (its share of the rows) has its own slots. Rows are numbered as the arrays of this process are:
part by part, slot by slot, n rows a slot.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spatial_vlm.rollout.slot_requests import RequestKind, SlotRequest


class WaitingRequest(NamedTuple):
  """A request in the queue."""

  request: SlotRequest
  key: np.ndarray
  """Data of the random key that its number is folded into."""
  kind: RequestKind


class Assignment(NamedTuple):
  """A request and the slots of its part that it takes."""

  waiting: WaitingRequest
  slots: list[int]


class SlotQueue:
  """The requests that wait, the answers that run, and the free slots.

  Args:
    parts: parts of the mesh that this process feeds.
    slots: slots of each part.
    rows_per_slot: answers that share a slot.
    counts: prompts that each part may read at a time, ascending.
  """

  def __init__(self, parts: int, slots: int, rows_per_slot: int, counts: Sequence[int]):
    self.slots, self.rows_per_slot, self._counts = slots, rows_per_slot, counts
    self.waiting: collections.deque[WaitingRequest] = collections.deque()
    self.running: dict[int, tuple[SlotRequest, int]] = {}
    """Row → (request, sample) of its answer."""
    self._free = [list(range(slots)) for _ in range(parts)]
    self._dropped: set[int] = set()

  @property
  def rows(self) -> int:
    """Rows of all parts."""
    return len(self._free) * self.slots * self.rows_per_slot

  def add(self, waiting: WaitingRequest) -> None:
    """Puts a request at the end; raises ValueError for an id that is taken."""
    id = waiting.request.id
    live = {w.request.id for w in self.waiting} | {of.id for of, _ in self.running.values()}
    if id in live:
      raise ValueError(f"request {id} is in the engine already; give every request its own id")
    self.waiting.append(waiting)

  def cancel(self, id: int) -> None:
    """Forgets a request and frees its slots; nothing happens if there is none of this id."""
    self.waiting = collections.deque(w for w in self.waiting if w.request.id != id)
    rows = [row for row, (of, _) in self.running.items() if of.id == id]
    self._dropped.update(rows)
    self.end(rows)

  def take_dropped(self) -> list[int]:
    """Returns the rows of cancelled answers that no other answer has taken since the last call."""
    dropped, self._dropped = sorted(self._dropped), set()
    return dropped

  def next_prompts(self) -> tuple[RequestKind, int] | None:
    """Returns the kind of the first request and how many prompts of it each part reads now; None: none yet.

    Later requests wait for the first even if they need less room, so that it gets its turn. While answers run, prompts
    wait for more free slots until the smallest count is full, since an empty place costs as much as a prompt.
    """
    if not self.waiting:
      return None
    kind = self.waiting[0].kind
    parts, most = len(self._free), self._counts[-1]
    room = sum(min(most, len(free) // kind.slots) for free in self._free)
    of_kind = sum(waiting.kind == kind for waiting in self.waiting)
    full = parts * min(self._counts[0], self.slots // kind.slots)
    if room < (min(full, of_kind) if self.running else 1):
      return None
    return kind, prompts_to_read(self._counts, -(-min(room, of_kind) // parts))

  def take(self, kind: RequestKind, most: int) -> list[list[Assignment]]:
    """Moves up to `most` requests of one kind to each part, which has slots for them, and returns those of each."""
    taken: list[list[Assignment]] = [[] for _ in self._free]
    left: collections.deque[WaitingRequest] = collections.deque()
    for waiting in self.waiting:
      parts = [
        part
        for part, free in enumerate(self._free)
        if len(taken[part]) < most and len(free) >= kind.slots
      ]
      if waiting.kind != kind or not parts:
        left.append(waiting)
        continue
      part = max(parts, key=lambda part: len(self._free[part]))
      free = self._free[part]
      slots, self._free[part] = free[: kind.slots], free[kind.slots :]
      taken[part].append(Assignment(waiting, slots))
      self._start(waiting.request, part, slots)
    self.waiting = left
    return taken

  def _start(self, request: SlotRequest, part: int, slots: list[int]) -> None:
    n = self.rows_per_slot
    for sample in range(request.samples):
      row = (part * self.slots + slots[sample // n]) * n + sample % n
      self.running[row] = (request, sample)
      self._dropped.discard(row)

  def end(self, rows: Iterable[int]) -> None:
    """Forgets the answers in these rows, and frees the slots in which none is left."""
    n, ended = self.rows_per_slot, set(rows)
    for row in ended:
      del self.running[row]
    for number in sorted({row // n for row in ended}):
      if not any(number * n + i in self.running for i in range(n)):
        part, slot = divmod(number, self.slots)
        self._free[part] = sorted([*self._free[part], slot])


def prompts_to_read(counts: Sequence[int], available: int) -> int:
  """Returns one of the ascending counts for so many prompts: the rest wait, or at most half of the places stay empty.

  >>> [prompts_to_read((1, 8), available) for available in (1, 3, 4, 8, 9)]
  [1, 1, 8, 8, 8]
  """
  enough = next((count for count in counts if count >= available), counts[-1])
  fitting = [count for count in counts if count <= available]
  return enough if enough <= 2 * available or not fitting else fitting[-1]
