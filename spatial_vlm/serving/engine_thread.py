"""The thread that drives the engine: requests of an event loop in, tokens back to it."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

from spatial_vlm.rollout.slot_requests import Progress, SlotRequest

log = logging.getLogger(__name__)

Sink = Callable[[Progress | Exception], None]
"""Receives the progress of one request in its event loop, or the error that ended it."""


class StepEngine(Protocol):
  """What the thread drives, e.g. `rollout.slot_engine.SlotEngine`."""

  @property
  def busy(self) -> bool: ...

  def submit(self, request: SlotRequest) -> None: ...

  def step(self) -> list[Progress]: ...

  def cancel(self, id: int) -> None: ...


class _Submitted(NamedTuple):
  loop: asyncio.AbstractEventLoop
  sink: Sink


class EngineThread:
  """Runs an engine in a thread of its own.

  Args:
    make_engine: returns an engine; called again after an error, since its state is unknown then.
    on_failure: called after each error of an engine.
  """

  def __init__(
    self, make_engine: Callable[[], StepEngine], on_failure: Callable[[], None] = lambda: None
  ):
    self._make_engine, self._on_failure = make_engine, on_failure
    self._work: queue.SimpleQueue[Callable[[StepEngine], None] | None] = queue.SimpleQueue()
    self._submitted: dict[int, _Submitted] = {}
    self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread after its current step."""
    self._work.put(None)
    self._thread.join()

  @property
  def alive(self) -> bool:
    """Whether the thread runs."""
    return self._thread.is_alive()

  def submit(self, request: SlotRequest, sink: Sink) -> None:
    """Hands in a request; called in the event loop in which `sink` is called."""
    submitted = _Submitted(asyncio.get_running_loop(), sink)

    def start(engine: StepEngine) -> None:
      try:
        engine.submit(request)
      except ValueError as error:  # this request does not fit; the engine goes on
        _call(submitted, error)
      else:
        self._submitted[request.id] = submitted

    self._work.put(start)

  def cancel(self, id: int) -> None:
    """Forgets a request and frees its slots; called once for each, finished or not."""

    def stop(engine: StepEngine) -> None:
      if self._submitted.pop(id, None):
        engine.cancel(id)

    self._work.put(stop)

  def _run(self) -> None:
    engine = self._make_engine()
    while True:
      try:
        if not self._take(engine):
          return
        if engine.busy:
          self._deliver(engine.step())
      except Exception as error:
        log.exception("the engine failed; its requests end with an error")
        self._fail(error)
        engine = self._make_engine()

  def _take(self, engine: StepEngine) -> bool:
    """Does the waiting work, waiting for some while the engine idles; returns False at the end."""
    while not engine.busy or not self._work.empty():
      work = self._work.get()
      if work is None:
        return False
      work(engine)
    return True

  def _deliver(self, progress: list[Progress]) -> None:
    for part in progress:
      if submitted := self._submitted.get(part.id):
        _call(submitted, part)

  def _fail(self, error: Exception) -> None:
    self._on_failure()
    for submitted in self._submitted.values():
      _call(submitted, error)
    self._submitted.clear()


def _call(submitted: _Submitted, value: Progress | Exception) -> None:
  try:
    submitted.loop.call_soon_threadsafe(submitted.sink, value)
  except RuntimeError:  # the loop is closed: nobody waits
    log.debug("the event loop of a request is closed")
