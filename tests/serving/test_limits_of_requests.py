"""What is refused or ended early: too much, too many, too slow, failed engines, clients that leave."""

import asyncio
import json
import math
import threading
import time
import weakref

import pytest

from spatial_vlm.serving import connection, images
from spatial_vlm.serving import service as service_module
from spatial_vlm.serving.app import make_app
from spatial_vlm.serving.engine_thread import EngineThread

CHAT = "/v1/chat/completions"


def drive(service, work):
  """Runs `work(app)` in an event loop, with the application's lifespan around it."""

  async def lived():
    app = make_app(service)
    done, started = asyncio.Event(), asyncio.Event()

    async def receive():
      if not started.is_set():
        return {"type": "lifespan.startup"}
      await done.wait()
      return {"type": "lifespan.shutdown"}

    async def send(message):
      if message["type"].startswith("lifespan.startup"):
        started.set()

    lifespan = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, receive, send))
    await started.wait()
    try:
      return await work(app)
    finally:
      done.set()
      await lifespan

  return asyncio.run(lived())


class Exchange:
  """One request; the client sends parts of the body and leaves when the test says so."""

  def __init__(self, app, body, headers=(), leaves=None):
    self.leaves = leaves or asyncio.Event()
    self.parts = [body] if isinstance(body, bytes) else body
    self.status, self.headers, self.body = None, {}, b""
    self.started, self.reads = asyncio.Event(), asyncio.Event()
    self.reads.set()
    fields = {"host": "127.0.0.1:8000", "content-type": "application/json", **dict(headers)}
    self.scope = {
      "type": "http",
      "method": "POST",
      "path": CHAT,
      "raw_path": CHAT.encode(),
      "query_string": b"",
      "headers": [(k.encode(), v.encode()) for k, v in fields.items()],
    }
    self.task = asyncio.ensure_future(app(self.scope, self.receive, self.send))

  async def receive(self):
    if self.parts:
      part = self.parts.pop(0)
      if part is None:
        await asyncio.sleep(60)
      return {"type": "http.request", "body": part, "more_body": bool(self.parts)}
    await self.leaves.wait()
    return {"type": "http.disconnect"}

  async def send(self, message):
    await self.reads.wait()
    if message["type"] == "http.response.start":
      self.status = message["status"]
      self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
    else:
      self.body += message.get("body", b"")
    self.started.set()

  @property
  def error(self):
    return json.loads(self.body)["error"]


async def until(condition, timeout_s=60):
  end = time.monotonic() + timeout_s
  while not condition():
    assert time.monotonic() < end, "it did not happen"
    await asyncio.sleep(0.005)


def encoded(body, **fields):
  return json.dumps(body("Is it so?", **fields)).encode()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_a_client_that_goes_away_frees_its_slots(scripted, body, stream, samples):
  service, engine = scripted(text="one two three " * 40)

  async def work(app):
    engine.allowed = 0
    first = Exchange(app, encoded(body, stream=stream, n=samples))
    await until(lambda: len(engine.requests) == samples)
    if stream:
      engine.allowed = 3
      await until(lambda: first.body.count(b"data: ") >= samples + 3)
    first.leaves.set()
    await asyncio.wait_for(first.task, 60)
    engine.allowed = math.inf
    await until(lambda: not engine.requests)
    second = Exchange(app, encoded(body))
    await asyncio.wait_for(second.task, 10)
    return first, second

  first, second = drive(service, work)
  assert len(engine.cancelled) == samples and second.status == 200
  assert first.status == (200 if stream else None) and b"[DONE]" not in first.body
  assert "spatial_vlm_cancelled_requests_total 1.0" in service.metrics.text().decode()
  assert "spatial_vlm_requests 0.0" in service.metrics.text().decode()


def test_a_full_queue_refuses_further_requests(scripted, body):
  service, engine = scripted("limits.queued_answers=3")

  async def work(app):
    engine.allowed = 0
    admitted = [Exchange(app, encoded(body)) for _ in range(5)]
    await until(lambda: len(engine.requests) == 5)
    refused = Exchange(app, encoded(body))
    await asyncio.wait_for(refused.task, 60)
    engine.allowed = math.inf
    await asyncio.wait_for(asyncio.gather(*(e.task for e in admitted)), 10)
    later = Exchange(app, encoded(body))
    await asyncio.wait_for(later.task, 10)
    return admitted, refused, later

  admitted, refused, later = drive(service, work)
  assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1
  assert refused.error["type"] == "rate_limit_error"
  assert [e.status for e in admitted] == [200] * 5 and later.status == 200
  assert engine.most_running == 2


def test_a_stream_passes_tokens_on_while_the_answer_is_written(scripted, body):
  service, engine = scripted()

  async def work(app):
    engine.allowed = 0
    exchange = Exchange(app, encoded(body, stream=True))
    await asyncio.wait_for(exchange.started.wait(), 60)
    await until(lambda: engine.requests)
    before = exchange.body.count(b"content")
    engine.allowed = math.inf
    await asyncio.wait_for(exchange.task, 10)
    return before, exchange

  before, exchange = drive(service, work)
  assert before == 1 and exchange.body.count(b'"content"') > 4
  assert exchange.headers["content-type"] == "text/event-stream; charset=utf-8"
  assert exchange.body.endswith(b"data: [DONE]\n\n")


def test_time_is_limited(scripted, body):
  service, engine = scripted("limits.timeout_s=0.3")

  async def work(app):
    engine.allowed = 0
    exchanges = [Exchange(app, encoded(body, stream=stream)) for stream in (False, True)]
    await asyncio.wait_for(asyncio.gather(*(e.task for e in exchanges)), 60)
    engine.allowed = math.inf
    await until(lambda: not engine.requests)
    return exchanges

  whole, stream = drive(service, work)
  assert whole.status == 504 and whole.error["code"] == "timeout"
  assert whole.error["type"] == "server_error"
  last = stream.body.split(b"\n\n")[-2]
  assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "timeout"
  assert len(engine.cancelled) == 2


def test_places_are_counted_by_answers(scripted, body):
  service, engine = scripted("limits.queued_answers=3")

  async def work(app):
    engine.allowed = 0
    admitted = [Exchange(app, encoded(body, n=4))]
    await until(lambda: len(engine.requests) == 4)
    refused = Exchange(app, encoded(body, n=2))
    await asyncio.wait_for(refused.task, 60)
    admitted.append(Exchange(app, encoded(body)))
    await until(lambda: len(engine.requests) == 5)
    engine.allowed = math.inf
    await asyncio.wait_for(asyncio.gather(*(e.task for e in admitted)), 10)
    return refused, admitted

  refused, admitted = drive(service, work)
  assert refused.status == 429 and [e.status for e in admitted] == [200, 200]


def test_an_engine_that_fails_is_replaced(scripted, body):
  service, engine = scripted()
  made = []

  def make_engine():
    made.append(engine)
    engine.requests.clear()
    return engine

  service.engine = EngineThread(make_engine, service.metrics.failures.inc)

  async def work(app):
    engine.allowed = 0
    exchanges = [Exchange(app, encoded(body, stream=stream)) for stream in (False, True)]
    await until(lambda: len(engine.requests) == 2)
    engine.error = RuntimeError("secret detail of the engine")
    await asyncio.wait_for(asyncio.gather(*(e.task for e in exchanges)), 60)
    engine.allowed = math.inf
    after = Exchange(app, encoded(body))
    await asyncio.wait_for(after.task, 60)
    return *exchanges, after

  whole, stream, after = drive(service, work)
  assert len(made) == 2
  assert whole.status == 500 and whole.error["message"] == "the engine failed; try again"
  assert b'"error"' in stream.body and b"[DONE]" not in stream.body
  assert b"secret" not in whole.body + stream.body and after.status == 200
  assert "spatial_vlm_engine_failures_total 1.0" in service.metrics.text().decode()


def test_without_an_engine_requests_fail_at_once(scripted, body):
  service, engine = scripted()
  engines = iter([engine])
  service.engine = EngineThread(lambda: next(engines))

  async def work(app):
    engine.allowed = 0
    running = Exchange(app, encoded(body))
    await until(lambda: engine.requests)
    engine.error = RuntimeError("no memory")
    await asyncio.wait_for(running.task, 60)
    await until(lambda: not service.engine.alive)
    late = Exchange(app, encoded(body))
    await asyncio.wait_for(late.task, 60)
    return running, late

  running, late = drive(service, work)
  assert (running.status, late.status) == (500, 503)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_reads_nothing_loses_its_place(scripted, body, monkeypatch, stream):
  monkeypatch.setattr(connection, "SEND_TIMEOUT_S", 0.1)
  service, engine = scripted()

  async def work(app):
    stalled = Exchange(app, encoded(body, stream=stream))
    stalled.reads.clear()
    await asyncio.wait_for(stalled.task, 60)
    await until(lambda: not engine.requests)
    return service.admission._places

  assert drive(service, work) == 0
  assert "spatial_vlm_cancelled_requests_total 1.0" in service.metrics.text().decode()


def test_at_the_end_of_the_drain_requests_get_an_error(scripted, body):
  service, engine = scripted()

  async def work(app):
    engine.allowed = 0
    whole, stream = (Exchange(app, encoded(body, stream=stream)) for stream in (False, True))
    sending = Exchange(app, [b"{", None])
    await until(lambda: len(engine.requests) == 2 and not sending.parts)
    service.admission.interrupt()
    later = Exchange(app, encoded(body))
    exchanges = whole, stream, sending, later
    await asyncio.wait_for(asyncio.gather(*(e.task for e in exchanges)), 60)
    return exchanges

  whole, stream, *others = drive(service, work)
  assert whole.status == 503 and whole.error["code"] == "shutting_down"
  assert stream.status == 200 and b'"shutting_down"' in stream.body.split(b"\n\n")[-2]
  assert [exchange.status for exchange in others] == [503, 503]


def test_few_images_are_decoded_at_a_time(scripted, body, noise, monkeypatch):
  service, _ = scripted()
  alive, counts = [], []

  def watched(*args):
    image = images.decoded(*args)
    alive.append(weakref.ref(image))
    counts.append(sum(other() is not None for other in alive))
    time.sleep(0.005)
    return image

  monkeypatch.setattr(service_module, "decoded", watched)

  async def work(app):
    bodies = [json.dumps(body("Is it?", *[noise(n)] * 3)).encode() for n in range(8)]
    exchanges = [Exchange(app, content) for content in bodies]
    await asyncio.wait_for(asyncio.gather(*(e.task for e in exchanges)), 10)
    return [exchange.status for exchange in exchanges]

  assert set(drive(service, work)) <= {200, 400} and len(counts) == 24
  assert max(counts) <= 3 * service_module.DECODERS


def test_no_image_is_decoded_after_the_time_is_up(scripted, body, noise, monkeypatch):
  service, _ = scripted("limits.timeout_s=0.3")
  begun, go_on = [], threading.Event()

  def slow(*args):
    begun.append(args)
    go_on.wait(5)
    return images.decoded(*args)

  monkeypatch.setattr(service_module, "decoded", slow)

  async def work(app):
    exchange = Exchange(app, json.dumps(body("Is it?", *[noise()] * 3)).encode())
    await asyncio.wait_for(exchange.task, 60)
    go_on.set()
    await asyncio.to_thread(service._decoders.shutdown)
    return exchange

  assert drive(service, work).status == 504 and len(begun) == 1


@pytest.mark.parametrize(
  ("parts", "headers", "status"),
  [
    ([b"x" * 600, b"x" * 600], {}, 413),
    ([b"{}"], {"content-length": "1001"}, 413),
    ([b"{}"], {"content-length": "9" * 5000}, 413),
    ([b"{", None, b"}"], {}, 408),
    ([b"{}"], {"content-type": "text/plain"}, 415),
    ([b"{}"], {"content-type": "multipart/form-data; boundary=x"}, 415),
    ([b"{}"], {"content-type": ""}, 415),
    ([b"{}"], {"content-type": "application/json; charset=utf-8"}, 400),
    ([b"[]"], {"content-length": "-5"}, 400),
  ],
)
def test_bodies_are_limited(scripted, parts, headers, status):
  service, _ = scripted("limits.body_bytes=1000", "limits.body_timeout_s=0.2")

  async def work(app):
    exchange = Exchange(app, list(parts), headers.items())
    await asyncio.wait_for(exchange.task, 60)
    return exchange

  exchange = drive(service, work)
  assert exchange.status == status and exchange.error["message"]
  assert "spatial_vlm_requests 0.0" in service.metrics.text().decode()


def test_a_client_may_leave_before_its_body_is_whole(scripted):
  service, _ = scripted()

  async def work(app):
    exchange = Exchange(app, [])
    exchange.leaves.set()
    await asyncio.wait_for(exchange.task, 60)

  drive(service, work)
  assert "spatial_vlm_requests 0.0" in service.metrics.text().decode()


@pytest.mark.parametrize(
  ("fields", "param"),
  [
    ({"messages": [{"role": "user", "content": "word " * 400}]}, "messages"),
    (
      {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]},
      "messages",
    ),
    ({"spatial_vlm": {"form": "chain"}}, "messages"),
    ({"spatial_vlm": {"behaviors": True}}, "messages"),
  ],
)
def test_prompts_that_cannot_be_asked_are_refused(scripted, client_of, body, fields, param):
  service, engine = scripted()
  response = client_of(service).post(CHAT, json=body("Is it so?") | fields)
  assert response.status_code == 400 and response.json()["error"]["param"] == param
  assert not engine.requests


def test_images_are_limited_by_what_the_prompt_holds(scripted, client_of, body, noise):
  service, _ = scripted("prompt_shapes=((64, 64),)", "max_patches=64")
  client, large = client_of(service), noise(size=(200, 200))
  assert client.post(CHAT, json=body("Is it?", large)).status_code == 200
  refused = client.post(CHAT, json=body("Is it?", large, large))
  assert refused.json()["error"]["code"] == "context_length_exceeded"
  assert "reads up to 64 and 64" in refused.json()["error"]["message"]
  elongated = client.post(CHAT, json=body("Is it?", noise(size=(2, 500))))
  assert "too elongated" in elongated.json()["error"]["message"]
