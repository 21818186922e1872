"""Clients of others, over HTTP: OpenAI's Python client, and the requests of VLMEvalKit's `OpenAIWrapper`."""

import base64
import io
import json
import urllib.request

import openai
import pytest
from scripted_engine import running, with_scripted_engine

from spatial_vlm import answers
from spatial_vlm.serving.app import make_app
from spatial_vlm.serving.http_guard import HttpGuard

MODEL = "nano"
TOKEN = "sk-a-token-of-a-test"
CHAIN = answers.render_chain("a. True?", "cat [1, 2, 30, 40]", "x=3 < x=4, so it is left of it.", 1)


@pytest.fixture
def serve(service_of, serving_policy):
  """(pause_at, overrides) -> address of the API, and its engine, which answers each prompt with CHAIN."""
  servers = []

  def start(*overrides, pause_at=""):
    service = service_of("max_new_tokens=144", *overrides)
    engine = with_scripted_engine(service, serving_policy, lambda prompt: CHAIN, pause_at=pause_at)
    server = running(make_app(service, HttpGuard(TOKEN)))
    servers.append(server)
    return server.__enter__() + "/v1", engine

  yield start
  for server in servers:
    server.__exit__(None, None, None)


@pytest.fixture
def client_at():
  """(address) -> OpenAI's client, which does not try again."""
  opened = []

  def connect(address, key=TOKEN):
    opened.append(openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=60))
    return opened[-1]

  yield connect
  for client in opened:
    client.close()


def test_openai_completes_and_streams(serve, client_at, body, noise):
  client = client_at(serve()[0])
  assert [model.id for model in client.models.list()] == [MODEL]
  request = body("The cat is left of the mug.", noise())
  whole = client.chat.completions.create(**request, logprobs=True, seed=1, temperature=0.5)
  (choice,) = whole.choices
  assert (choice.message.content, choice.finish_reason) == (CHAIN, "stop")
  assert b"".join(bytes(t.bytes) for t in choice.logprobs.content).decode() == CHAIN
  assert {token.logprob for token in choice.logprobs.content} == {-0.5}
  assert whole.usage.completion_tokens == len(choice.logprobs.content) + 1  # the end of the turn
  chunks = [
    *client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
  ]
  assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == CHAIN
  assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def test_openai_asks_in_the_projects_own_words(serve, client_at, body, noise):
  client = client_at(serve()[0])
  request = body("The cat is left of the mug.", noise())
  extra = {"spatial_vlm": {"form": "chain"}}
  answer = client.chat.completions.create(**request, extra_body=extra)
  assert answer.model_extra["spatial_vlm"] == {
    **{"behavior": None, "saved_tokens": 0, "boxes": {"cat": [1, 2, 30, 40]}, "verdict": 1}
  }
  with client.chat.completions.stream(**request, extra_body=extra) as stream:
    events = [event.type for event in stream]
    final = stream.get_final_completion()
  assert "content.delta" in events and final.choices[0].message.content == CHAIN


def test_openai_raises_its_own_errors(serve, client_at, body):
  address, engine = serve(
    "slots=1", "limits.samples=1", "limits.queued_answers=0", pause_at="Caption"
  )
  client, request = client_at(address), body("Say it.")
  wrong = [
    (openai.BadRequestError, request | {"max_tokens": 0}, "max_tokens"),
    (openai.NotFoundError, request | {"model": "gpt-4o"}, "model"),
    (
      openai.BadRequestError,
      request | {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
      None,
    ),
  ]
  for kind, fields, param in wrong:
    with pytest.raises(kind) as raised:
      client.chat.completions.create(**fields)
    assert raised.value.type == "invalid_request_error"
    assert param is None or raised.value.param == param
  with pytest.raises(openai.AuthenticationError):
    client_at(address, "sk-another-token").models.list()
  stream = client.chat.completions.create(**request, stream=True)
  next(iter(stream))
  with pytest.raises(openai.RateLimitError) as raised:
    client.chat.completions.create(**request)
  assert int(raised.value.response.headers["retry-after"]) >= 1
  engine.resume.set()
  assert "".join(c.choices[0].delta.content or "" for c in stream) == CHAIN


def vlmevalkit_request(address, parts):
  """The request of VLMEvalKit's `OpenAIWrapper.generate_inner` (vlmeval/api/gpt.py at 00006c5).

  `parts` are texts and images: an image is sent as JPEG, with the detail "low".
  """
  content = []
  for part in parts:
    if isinstance(part, str):
      content.append({"type": "text", "text": part})
      continue
    file = io.BytesIO()
    part.save(file, "JPEG")
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    content.append({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
  payload = {
    "model": MODEL,
    "messages": [
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": content},
    ],
    "n": 1,
    "temperature": 0,
    "max_tokens": 144,
  }
  headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
  url = f"{address}/chat/completions"
  return urllib.request.Request(url, json.dumps(payload).encode(), headers)


def test_vlmevalkit_gets_its_answer(serve, noise):
  address, _ = serve()
  question = "Is the cat left of the mug? Please answer yes or no."
  for parts in ([noise(0), question], [noise(0, (64, 48)), noise(1), question], [question]):
    with urllib.request.urlopen(vlmevalkit_request(address, parts), timeout=60) as response:
      answer = json.load(response)
    assert answer["choices"][0]["message"]["content"].strip() == CHAIN
    assert answer["choices"][0]["finish_reason"] == "stop"
