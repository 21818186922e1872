"""Processes that run the stages of the demo, each on its own share of the cores.

Stages in threads of one process would share the threads of XLA: two trainings on two cores then do no more work than
one core does alone.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor

from spatial_vlm import allocator, compilation_cache, hosts
from spatial_vlm.progress import share_terminal
from spatial_vlm.streams import set_up_streams

PR_SET_PDEATHSIG = 1
"""Of prctl(2): which signal a process receives when its parent ends."""


@contextlib.contextmanager
def worker_processes(count: int, keep_compiled: bool) -> Iterator[Executor]:
  """Yields a pool of `count` processes; at the end it waits for what they still run.

  Args:
    keep_compiled: whether they keep compiled programs (see `compilation_cache`).
  """
  context = multiprocessing.get_context("spawn")  # a fork would copy JAX without its threads
  numbers = context.SimpleQueue()
  for number in range(count):
    numbers.put(number)
  arguments = (numbers, count, context.RLock(), keep_compiled)
  with ProcessPoolExecutor(count, context, _set_up, arguments) as pool:
    yield pool


def share_of_cores(cores: Sequence[int], number: int, count: int) -> list[int]:
  """Returns the cores of worker `number` of `count`: neighbours, or all where there are fewer cores than workers.

  >>> share_of_cores([0, 1, 2, 3, 6], 0, 2), share_of_cores([0, 1, 2, 3, 6], 1, 2)
  ([0, 1], [2, 3, 6])
  >>> share_of_cores([5], 1, 2)
  [5]
  """
  first, last = (len(cores) * i // count for i in (number, number + 1))
  return list(cores[first:last] if len(cores) >= count else cores)


def _set_up(numbers, count: int, lock, keep_compiled: bool) -> None:
  """Prepares a worker, before JAX counts the cores."""
  number = numbers.get()
  # A killed demo may be started again at once, and its folders must have no second writer.
  ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # while it waits, see `interruptible`
  os.sched_setaffinity(0, share_of_cores(sorted(os.sched_getaffinity(0)), number, count))
  share_terminal(number, lock)
  set_up_streams()
  allocator.keep_freed_memory()
  compilation_cache.set_up(keep_compiled)
  hosts.skip_absent_tpu()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
  """Around the work of a worker: Ctrl-C interrupts it; at its end, what it printed is shown."""
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
    sys.stdout.flush()
