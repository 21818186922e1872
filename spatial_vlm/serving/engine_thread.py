"""The thread that drives the engine: takes requests of an event loop and returns their tokens to it."""

import asyncio
import gc
import logging
import queue
import threading
import traceback
from collections.abc import Callable
from typing import NamedTuple, Protocol

from spatial_vlm.rollout.slot_requests import Progress, SlotRequest

log = logging.getLogger(__name__)

Sink = Callable[[Progress | Exception], None]
"""Receives the progress of one request in its event loop, or the error that ended it."""


class EngineFailed(Exception):
  """The engine of a request failed, or no engine runs."""


class StepEngine(Protocol):
  """The engine that the thread drives, e.g. `rollout.slot_engine.SlotEngine`."""

  @property
  def busy(self) -> bool: ...

  def submit(self, request: SlotRequest) -> None: ...

  def step(self) -> list[Progress]: ...

  def cancel(self, id: int) -> None: ...


class _Submitted(NamedTuple):
  loop: asyncio.AbstractEventLoop
  sink: Sink


class EngineThread:
  """Runs an engine in its own thread.

  If an engine fails, its requests end with `EngineFailed` and a new engine replaces it. If no engine can be made, the
  thread ends, and further requests fail at once.

  Args:
    make_engine: returns an engine; called again after an error, since the state of the failed engine is unknown.
    on_failure: called after each error of an engine.
  """

  def __init__(
    self, make_engine: Callable[[], StepEngine], on_failure: Callable[[], None] = lambda: None
  ):
    self._make_engine, self._on_failure = make_engine, on_failure
    self._work: queue.SimpleQueue[Callable[[StepEngine | None], None] | None] = queue.SimpleQueue()
    self._submitted: dict[int, _Submitted] = {}
    self._ended = False
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
    return self._thread.is_alive() and not self._ended

  def submit(self, request: SlotRequest, sink: Sink) -> None:
    """Hands in a request; called in the event loop in which `sink` is called."""
    submitted = _Submitted(asyncio.get_running_loop(), sink)

    def start(engine: StepEngine | None) -> None:
      if engine is None:
        _call(submitted, EngineFailed("the engine does not run"))
        return
      try:
        engine.submit(request)
      except ValueError as error:  # only this request fails; its new error has no traceback
        _call(submitted, ValueError(str(error)))
      else:
        self._submitted[request.id] = submitted

    self._put(start)

  def cancel(self, id: int) -> None:
    """Forgets a request and frees its slots; called once for each, finished or not."""

    def stop(engine: StepEngine | None) -> None:
      if self._submitted.pop(id, None) and engine is not None:
        engine.cancel(id)

    self._put(stop)

  def _put(self, work: Callable[[StepEngine | None], None]) -> None:
    self._work.put(work)
    if self._ended:
      self._refuse_waiting()

  def _run(self) -> None:
    try:
      # The failed engine and its caches must be freed before the next one is made.
      while not self._drive(self._make_engine()):
        gc.collect()
    except Exception:
      log.exception("no engine could be made; the server cannot answer")
    finally:
      self._ended = True
      self._fail_submitted()
      self._refuse_waiting()

  def _drive(self, engine: StepEngine) -> bool:
    """Runs the engine; returns True when the thread is to end, False when the engine has failed."""
    try:
      while self._take(engine):
        if engine.busy:
          self._deliver(engine.step())
      return True
    except Exception:
      # As text: a handler that keeps records would keep the traceback's frames, and with them the engine's caches.
      log.error(
        "the engine failed; its requests end with an error\n%s", traceback.format_exc().rstrip()
      )
      self._on_failure()
      self._fail_submitted()
      return False

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

  def _fail_submitted(self) -> None:
    for submitted in self._submitted.values():
      _call(submitted, EngineFailed("the engine failed"))
    self._submitted.clear()

  def _refuse_waiting(self) -> None:
    """Ends all work of the queue without an engine; the thread and the event loop may both call it."""
    while True:
      try:
        work = self._work.get_nowait()
      except queue.Empty:
        return
      if work is not None:
        work(None)


def _call(submitted: _Submitted, value: Progress | Exception) -> None:
  try:
    submitted.loop.call_soon_threadsafe(submitted.sink, value)
  except RuntimeError:  # the loop is closed: nobody waits
    log.debug("the event loop of a request is closed")
