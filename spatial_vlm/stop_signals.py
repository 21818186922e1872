"""Ctrl-C and SIGTERM during training: the first one asks for a checkpoint, the next one ends the command at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax

_received: list[int] = []
"""Signals since the loop of the newest run began."""


@contextlib.contextmanager
def checkpoint_at_signals() -> Iterator[None]:
  """Around a training loop: the first Ctrl-C or SIGTERM interrupts nothing, and `requested` returns it.

  Connected processes leave SIGTERM to jax.distributed, which tells all of them. Ctrl-C in one of them becomes a
  SIGTERM.
  Threads other than the main one cannot set handlers; there, signals keep their effect.
  """
  _received.clear()
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  connected = jax.distributed.is_initialized()
  numbers = (signal.SIGINT,) if connected else (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.getsignal(number) for number in numbers}

  def restore() -> None:
    for number, handler in before.items():
      signal.signal(number, handler)

  def request(number: int, frame: FrameType | None) -> None:
    restore()
    _received.append(number)
    sys.stderr.write("\nsaving a checkpoint, then stopping; a second Ctrl-C stops at once\n")
    if connected:
      os.kill(os.getpid(), signal.SIGTERM)

  for number in numbers:
    signal.signal(number, request)
  try:
    yield
  finally:
    restore()
  if _received:  # after the last step, whose checkpoint is saved
    raise KeyboardInterrupt


def requested() -> int | None:
  """Returns the signal that asked this process for a checkpoint; None if there was none."""
  return _received[0] if _received else None
