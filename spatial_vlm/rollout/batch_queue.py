"""Batches through one slot engine.

Threads share it, so that the next batch takes the slots that the answers of the last one leave.
"""

import itertools
import queue
import threading
from typing import Any

import numpy as np
from jaxtyping import PRNGKeyArray

from spatial_vlm.hosts import all_gather_json
from spatial_vlm.process_rows import make_global_batch, own_rows
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import Completions, SamplingSettings
from spatial_vlm.rollout.slot_engine import SlotEngine
from spatial_vlm.rollout.slot_requests import Progress, SlotRequest

TURN_S = 0.02
"""Time after which a thread looks whether another one has answered its batch."""


class OpenBatch:
  """The answers of one batch so far, as arrays of this process's rows."""

  def __init__(self, prompts: int, sampling: SamplingSettings):
    rows, length = prompts * sampling.group_size, sampling.max_new_tokens
    self.left = rows
    """Answers that have not ended."""
    self.error: Exception | None = None
    """Why the batch cannot be answered."""

    def filled(value: Any, dtype: Any) -> Any:  # NumPy arrays, which are written in place
      return np.full((rows, length), value, dtype)

    self.completions = Completions(
      tokens=filled(sampling.pad, np.int32), mask=filled(False, bool), logp=filled(0, np.float32)
    )
    self._lengths = np.zeros(rows, np.int32)

  def add(self, row: int, progress: Progress) -> None:
    """Appends the new tokens of an answer."""
    start = self._lengths[row]
    now = slice(start, start + len(progress.tokens))
    for array, values in zip(self.completions, (progress.tokens, True, progress.logp), strict=True):
      array[row, now] = values
    self._lengths[row] = now.stop
    self.left -= progress.finished is not None


class BatchQueue:
  """Answers batches with a slot engine; any thread may call `generate`, and one at a time drives the engine."""

  def __init__(self, engine: SlotEngine):
    self.engine = engine
    self.turn = threading.Lock()
    """Held while programs start: on several devices, all must start them in one order."""
    self._arrived: queue.SimpleQueue[tuple[SlotRequest, PRNGKeyArray, OpenBatch, int]] = (
      queue.SimpleQueue()
    )
    self._numbers = itertools.count()
    self._batch_of: dict[int, tuple[OpenBatch, int]] = {}  # id -> its batch, the row of sample 0

  def generate(
    self, requests: Requests, key: PRNGKeyArray, sampling: SamplingSettings
  ) -> Completions:
    """Samples `group_size` completions of every prompt; those with a negative id stay empty.

    A completion is a function of (key, id, sample), as that of `sampler.generate`.

    Raises ValueError for a request that the engine can never answer, and RuntimeError in every thread where a step of
    the engine fails or its weights change before the batch is answered.
    """
    ids = own_rows(requests.prompts.ids).tolist()
    batch, size = OpenBatch(len(ids), sampling), sampling.group_size
    prefixes = requests.prefixes or [()] * len(ids)
    for number, (id, prompt, prefix) in enumerate(
      zip(ids, requests.encoded, prefixes, strict=True)
    ):
      if id < 0:
        batch.left -= size
        continue
      request = SlotRequest(
        id=next(self._numbers),
        prompt=prompt,
        prefix=prefix,
        samples=size,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        key_id=id,
      )
      self._arrived.put((request, key, batch, number * size))
    try:
      self._answer(batch)
    except BaseException as error:
      with self.turn:
        self._forget(batch, error)
      raise
    return make_global_batch(self.engine.mesh, batch.completions)

  def _answer(self, batch: OpenBatch) -> None:
    """Drives the engine, in turns with other threads, until the batch is answered."""
    while any(all_gather_json(bool(batch.left))):
      if self.turn.acquire(timeout=TURN_S):
        try:
          self._step()
          if batch.left and not batch.error and not self.engine.busy:
            raise RuntimeError(
              f"{batch.left} answers of the batch are lost: weights were published or released before they ended"
            )
        finally:
          self.turn.release()
      if batch.error:
        raise batch.error

  def _forget(self, batch: OpenBatch, error: BaseException) -> None:
    """Takes the requests of a batch out of the engine."""
    batch.error = batch.error or RuntimeError(f"the batch was given up: {error!r}")
    for id in [id for id, of in self._batch_of.items() if of[0] is batch]:
      del self._batch_of[id]
      self.engine.cancel(id)

  def _step(self) -> None:
    while not self._arrived.empty():
      request, key, batch, row = self._arrived.get()
      if batch.error:
        continue
      try:
        self.engine.submit(request, key)
      except ValueError as error:  # the thread of this batch raises it; the others continue
        batch.error = error
        self._forget(batch, error)
      else:
        self._batch_of[request.id] = (batch, row)
    for progress in self.engine.step():
      batch, row = self._batch_of[progress.id]
      batch.add(row + progress.sample, progress)
    # An id is needed no more when all answers of its batch have ended.
    self._batch_of = {id: of for id, of in self._batch_of.items() if of[0].left}
