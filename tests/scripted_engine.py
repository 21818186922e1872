"""An engine that writes prepared answers, and an HTTP server over it: what clients and the page are tested with."""

import contextlib
import threading
import time

import uvicorn

from spatial_vlm.rollout.slot_requests import Progress
from spatial_vlm.serving.engine_thread import EngineThread

STEP_TOKENS = 4


class ScriptedEngine:
  """Answers each prompt with `answer(text of the prompt)`, four tokens a step.

  Args:
    tokenizer: encodes the answers.
    eos: token that ends an answer.
    answer: text of the prompt -> text of the answer.
    pause_at: an answer waits before these words until `resume` is set; empty: it does not.
  """

  def __init__(self, tokenizer, eos, answer, pause_at=""):
    self.tokenizer, self.eos, self.answer, self.pause_at = tokenizer, eos, answer, pause_at
    self.resume = threading.Event()
    self.left, self.pauses = {}, {}
    self.cancelled = []

  @property
  def busy(self):
    return bool(self.left)

  def submit(self, request):
    prompt = self.tokenizer.decode([*request.prefix, *request.prompt.tokens.tolist()])
    text = self.answer(prompt)
    self.left[request.id] = [*self._ids(text), self.eos][: request.max_new_tokens]
    before, mark, _ = text.partition(self.pause_at) if self.pause_at else ("", "", "")
    # Left tokens at which the answer waits.
    self.pauses[request.id] = len(self._ids(text)) + 1 - len(self._ids(before)) if mark else 0

  def cancel(self, id):
    if self.left.pop(id, None):
      self.cancelled.append(id)

  def step(self):
    waiting = () if self.resume.is_set() else [n for n, p in self.pauses.items() if p]
    ready = [n for n in self.left if n not in waiting or len(self.left[n]) > self.pauses[n]]
    if not ready:
      time.sleep(0.01)
    return [self._advance(id) for id in ready]

  def _ids(self, text):
    return self.tokenizer.encode(text, add_special_tokens=False)

  def _advance(self, id):
    part, self.left[id] = self.left[id][:STEP_TOKENS], self.left[id][STEP_TOKENS:]
    finished = None if self.left[id] else "stop" if part[-1] == self.eos else "length"
    if finished:
      del self.left[id]
    return Progress(id, 0, part, [-0.5] * len(part), finished)


def with_scripted_engine(service, policy, answer, pause_at=""):
  """Replaces the engine of a service that is not started; returns the new one."""
  engine = ScriptedEngine(policy.processor.tokenizer, policy.special.eos, answer, pause_at)
  service.engine = EngineThread(lambda: engine)
  return engine


@contextlib.contextmanager
def running(app):
  """Serves an application at a free port of this machine; yields its address."""
  config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", http="h11", ws="none")
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
