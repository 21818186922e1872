"""An engine that writes prepared answers, and an HTTP server: for tests of the server, its clients and its page."""

import contextlib
import math
import threading
import time

import uvicorn

from spatial_vlm.rollout.slot_requests import Progress
from spatial_vlm.serving.engine_thread import EngineThread

STEP_TOKENS = 4


class ScriptedEngine:
  """Answers each prompt with `answer(text of the prompt)`, some tokens a step, in a few slots.

  It does `allowed` steps; `error` is raised once by the next of them.

  Args:
    tokenizer: encodes the answers.
    eos: token that ends an answer.
    answer: text of the prompt -> text of the answer.
    pause_at: an answer waits before these words until `resume` is set; empty: it does not.
    step_tokens: tokens that a step adds to an answer.
    slots: answers that are written at a time.
  """

  def __init__(self, tokenizer, eos, answer, pause_at="", step_tokens=STEP_TOKENS, slots=1000):
    self.tokenizer, self.eos, self.answer, self.pause_at = tokenizer, eos, answer, pause_at
    self.step_tokens, self.slots = step_tokens, slots
    self.resume = threading.Event()
    self.allowed, self.error = math.inf, None
    self.requests, self.pauses = {}, {}  # left tokens, and their number at which an answer waits
    self.cancelled = []
    self.most_running = 0

  @property
  def busy(self):
    return bool(self.requests)

  def submit(self, request):
    prompt = self.tokenizer.decode([*request.prefix, *request.prompt.tokens.tolist()])
    text = self.answer(prompt)
    self.requests[request.id] = [*self._ids(text), self.eos][: request.max_new_tokens]
    before, mark, _ = text.partition(self.pause_at) if self.pause_at else ("", "", "")
    self.pauses[request.id] = len(self._ids(text)) + 1 - len(self._ids(before)) if mark else 0

  def cancel(self, id):
    if self.requests.pop(id, None):
      self.cancelled.append(id)

  def step(self):
    error, self.error = self.error, None
    if error:
      raise error
    waiting = () if self.resume.is_set() else [n for n, p in self.pauses.items() if p]
    running = list(self.requests)[: self.slots]
    left = self.requests
    ready = [n for n in running if n not in waiting or len(left[n]) > self.pauses[n]]
    if not ready or self.allowed <= 0:
      time.sleep(0.002)
      return []
    self.allowed -= 1
    self.most_running = max(self.most_running, len(running))
    return [self._advance(id) for id in ready]

  def _ids(self, text):
    return self.tokenizer.encode(text, add_special_tokens=False)

  def _advance(self, id):
    left, size = self.requests[id], self.step_tokens
    part, self.requests[id] = left[:size], left[size:]
    finished = None if self.requests[id] else "stop" if part[-1] == self.eos else "length"
    if finished:
      del self.requests[id]
    return Progress(id, 0, part, [-0.5] * len(part), finished)


def with_scripted_engine(service, policy, answer, **settings):
  """Replaces the engine of a service that is not started; returns the new one."""
  engine = ScriptedEngine(policy.processor.tokenizer, policy.special.eos, answer, **settings)
  service.engine = EngineThread(lambda: engine, service.metrics.failures.inc)
  return engine


@contextlib.contextmanager
def running(app, **settings):
  """Serves an application at a free port of this machine, with settings of uvicorn; yields its address."""
  settings = {"log_level": "warning", "http": "h11", "ws": "none", **settings}
  config = uvicorn.Config(app, host="127.0.0.1", port=0, **settings)
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run, daemon=True)
  thread.start()
  try:
    while not server.started:
      assert thread.is_alive(), "the server did not start"
      time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
  finally:
    server.should_exit = True
    thread.join(30)
