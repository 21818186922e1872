"""The engine's thread: a failed engine is freed before the next one, and without an engine requests fail at once."""

import asyncio
import weakref

import pytest

from spatial_vlm.rollout.slot_requests import SlotRequest
from spatial_vlm.serving.engine_thread import EngineFailed, EngineThread


class FailingEngine:
  """Fails at its first step."""

  def __init__(self):
    self.busy = False
    self.itself = self  # only the cyclic collector frees it

  def submit(self, request):
    self.busy = True

  def cancel(self, id):
    pass

  def step(self):
    raise RuntimeError("out of memory")


def ask(thread, *ids):
  """Submits requests one after another; returns what their sinks received."""

  async def asked():
    received = []
    for id in ids:
      answer = asyncio.get_running_loop().create_future()
      thread.submit(SlotRequest(id=id, prompt=None, max_new_tokens=1), answer.set_result)
      received.append(await asyncio.wait_for(answer, 60))
      thread.cancel(id)
    return received

  return asyncio.run(asked())


def test_a_failed_engine_is_freed_before_the_next_one_is_made():
  made, alive = [], []

  def make_engine():
    alive.append(sum(engine() is not None for engine in made))
    engine = FailingEngine()
    made.append(weakref.ref(engine))
    return engine

  thread = EngineThread(make_engine)
  thread.start()
  received = ask(thread, 0, 1)
  thread.stop()
  assert alive == [0, 0, 0]
  assert all(isinstance(error, EngineFailed) for error in received)
  assert all(error.__traceback__ is None for error in received)


@pytest.mark.parametrize("engines", [0, 1])
def test_if_no_engine_can_be_made_requests_fail(engines):
  makers = iter([FailingEngine] * engines)
  thread = EngineThread(lambda: next(makers)())
  thread.start()
  received = ask(thread, *range(engines + 2))
  assert [type(error) for error in received] == [EngineFailed] * (engines + 2)
  assert not thread.alive
  thread.stop()
