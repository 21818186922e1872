"""Which request takes which slot."""

import numpy as np

from spatial_vlm.rollout.slot_engine import BLANK
from spatial_vlm.rollout.slot_queue import SlotQueue, WaitingRequest
from spatial_vlm.rollout.slot_requests import RequestKind, SlotRequest

SMALL, LARGE, WIDE = RequestKind(0, False, 1), RequestKind(1, False, 1), RequestKind(0, False, 2)


def filled(kinds, parts=1, slots=2, rows_per_slot=1, counts=(1, 8)):
  """Returns a queue of requests of these kinds; a request has as many samples as its slots hold."""
  queue = SlotQueue(parts, slots, rows_per_slot, counts)
  for id, kind in enumerate(kinds):
    request = SlotRequest(id=id, prompt=BLANK, max_new_tokens=4, samples=kind.slots * rows_per_slot)
    queue.add(WaitingRequest(request, np.zeros(2, np.uint32), kind))
  return queue


def ids(taken):
  return [[(a.waiting.request.id, a.slots) for a in of_part] for of_part in taken]


def test_requests_of_one_kind_are_taken_together_in_their_order():
  queue = filled([SMALL, LARGE, SMALL, SMALL])
  assert queue.next_prompts() == (SMALL, 1)
  assert ids(queue.take(SMALL, 8)) == [[(0, [0]), (2, [1])]]
  assert queue.next_prompts() is None  # no room
  assert [w.request.id for w in queue.waiting] == [1, 3]


def test_the_first_request_waits_for_room_and_those_after_it_too():
  queue = filled([SMALL, WIDE, SMALL])
  queue.take(SMALL, 1)
  assert queue.next_prompts() is None
  queue.end([0])
  assert queue.next_prompts() == (WIDE, 1)
  assert ids(queue.take(WIDE, 8)) == [[(1, [0, 1])]]


def test_requests_are_spread_over_the_parts():
  queue = filled([SMALL] * 5, parts=2, slots=3)
  assert ids(queue.take(SMALL, 2)) == [[(0, [0]), (2, [1])], [(1, [0]), (3, [1])]]
  running = {row: (request.id, sample) for row, (request, sample) in queue.running.items()}
  assert running == {0: (0, 0), 1: (2, 0), 3: (1, 0), 4: (3, 0)}


def test_a_slot_is_free_when_all_of_its_answers_have_ended():
  queue = filled([SMALL, SMALL], slots=1, rows_per_slot=2)
  queue.take(SMALL, 8)
  queue.end([0])
  assert queue.next_prompts() is None
  queue.end([1])
  assert queue.next_prompts() == (SMALL, 1)


def test_a_row_is_dropped_unless_another_answer_has_taken_it():
  queue = filled([SMALL, SMALL, SMALL], slots=2)
  queue.take(SMALL, 8)
  queue.cancel(0)
  queue.cancel(1)
  queue.take(SMALL, 8)
  assert queue.take_dropped() == [1]
  assert queue.take_dropped() == [] and not queue.waiting


def test_prompts_wait_until_as_many_as_one_program_reads_have_room():
  queue = filled([SMALL] * 9, slots=4, counts=(2,))
  taken = []
  for ended in ([], [], [0], [1], [2], [0, 1, 3]):
    queue.end(ended)
    if ready := queue.next_prompts():
      (of_part,) = queue.take(*ready)
      taken.append([a.waiting.request.id for a in of_part])
    else:
      taken.append(None)
  assert taken == [[0, 1], [2, 3], None, [4, 5], None, [6, 7]]
  assert queue.next_prompts() == (SMALL, 2)  # for the last request


def test_prompts_are_read_at_once_where_nothing_runs():
  assert filled([SMALL], counts=(4,)).next_prompts() == (SMALL, 4)
  assert filled([WIDE, WIDE], slots=3, counts=(2,)).next_prompts() == (WIDE, 2)


def test_as_many_as_wait_are_read_in_each_part():
  assert filled([SMALL] * 10, parts=2, slots=16).next_prompts() == (SMALL, 8)
  assert filled([SMALL] * 5, parts=2, slots=16).next_prompts() == (SMALL, 1)
