"""Requests: what is read, and what is refused with the field's name."""

import json

import pytest

from spatial_vlm.serving.api_error import ApiError
from spatial_vlm.serving.chat_messages import ImageUrl, MessageLimits, Turn
from spatial_vlm.serving.chat_request import (
  NEUTRAL,
  ChatRequest,
  Defaults,
  parse_chat_request,
)

DEFAULTS = Defaults(
  model="m",
  max_new_tokens=64,
  temperature=0.5,
  samples=4,
  messages=MessageLimits(characters=1000, turns=6, parts=12, images=2),
  commas=100,
)
USER = {"role": "user", "content": "Is it?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TEXT = {"type": "text", "text": "What?"}


def parse(**fields):
  data = {"model": "m", "messages": [USER]} | fields
  return parse_chat_request(json.dumps(data).encode(), DEFAULTS)


def refusal(body):
  with pytest.raises(ApiError) as caught:
    parse_chat_request(body, DEFAULTS)
  return caught.value


def test_a_request_that_says_little_gets_the_defaults():
  assert parse() == ChatRequest(
    turns=(Turn("user", ("Is it?",)),),
    max_new_tokens=64,
    temperature=0.5,
    top_p=1.0,
    top_k=0,
    samples=1,
    seed=None,
    stop=(),
    logprobs=False,
    top_logprobs=0,
    stream=False,
    include_usage=False,
    form=None,
    behaviors=None,
  )


def test_every_field_is_read():
  turns = [
    {"role": "developer", "content": "Be short."},
    {"role": "user", "content": [TEXT, IMAGE, TEXT], "name": "somebody"},
    {"role": "assistant", "content": "A mug.", "refusal": None},
    USER,
  ]
  request = parse(
    messages=turns,
    max_completion_tokens=9,
    temperature=1,
    top_p=0.25,
    top_k=7,
    n=3,
    seed=-4,
    stop=["a", "b"],
    logprobs=True,
    top_logprobs=20,
    stream=True,
    stream_options={"include_usage": True},
    spatial_vlm={"form": "short", "behaviors": False},
    user="ignored",
    a_field_of_tomorrow=[1],
  )
  url = ImageUrl("data:image/png;base64,AAAA", "messages[1].content[1].image_url.url")
  assert request == ChatRequest(
    turns=(
      Turn("system", ("Be short.",)),
      Turn("user", ("What?", url, "What?")),
      Turn("assistant", ("A mug.",)),
      Turn("user", ("Is it?",)),
    ),
    max_new_tokens=9,
    temperature=1.0,
    top_p=0.25,
    top_k=7,
    samples=3,
    seed=-4,
    stop=("a", "b"),
    logprobs=True,
    top_logprobs=20,
    stream=True,
    include_usage=True,
    form="short",
    behaviors=False,
  )
  assert request.image_urls == [url]


def test_shorter_ways_to_say_the_same():
  assert parse(stop="x").stop == ("x",)
  assert (
    parse(max_tokens=5).max_new_tokens
    == parse(max_tokens=5, max_completion_tokens=5).max_new_tokens
    == 5
  )
  assert parse(top_k=-1).top_k == 0
  assert parse(spatial_vlm={"behaviors": True}).form == "chain"
  nothing = {
    name: None for name in (*NEUTRAL, "n", "seed", "stop", "stream", "stream_options", "logprobs")
  }
  assert parse(**nothing) == parse()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_fields_that_are_not_implemented_are_accepted_at_their_neutral_value_only(name):
  for value in NEUTRAL[name]:
    assert parse(**{name: value}) == parse()
  with pytest.raises(ApiError, match=f"^{name} is .*not supported") as caught:
    parse(**{name: True})
  assert (caught.value.param, caught.value.code) == (name, "unsupported_parameter")


def content(*parts):
  return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
  ("fields", "param"),
  [
    ({"model": 3}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (content(), "messages[0].content"),
    (content("text"), "messages[0].content[0].type"),
    (content({"type": "video_url"}), "messages[0].content[0].type"),
    (content({"type": ["text"]}), "messages[0].content[0].type"),
    (content({"type": "text", "text": 1}), "messages[0].content[0].text"),
    (content(TEXT, {"type": "image_url"}), "messages[0].content[1].image_url.url"),
    (content({"type": "image_url", "image_url": "x"}), "messages[0].content[0].image_url"),
    (
      content({"type": "image_url", "image_url": {"url": "x", "detail": "most"}}),
      "messages[0].content[0].image_url.detail",
    ),
    (content(IMAGE, IMAGE, IMAGE), "messages"),
    (content({"type": "text", "text": "x" * 1001}), "messages"),
    (content({"type": "text", "text": "," * 101}), "messages"),
    (content(*[{"type": "text", "text": ""}] * 13), "messages"),
    ({"messages": [{"role": "user", "content": ""}] * 7}, "messages"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "0"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": 10**400}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"n": 5}, "n"),
    ({"n": True}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 2**31}, "max_tokens"),
    ({"max_completion_tokens": 1.0}, "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stop": list("abcde")}, "stop"),
    ({"stop": [None]}, "stop"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": []}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"spatial_vlm": "chain"}, "spatial_vlm"),
    ({"spatial_vlm": {"form": "long"}}, "spatial_vlm.form"),
    ({"spatial_vlm": {"form": ["chain"]}}, "spatial_vlm.form"),
    ({"spatial_vlm": {"behaviors": 1}}, "spatial_vlm.behaviors"),
  ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields, param):
  with pytest.raises(ApiError) as caught:
    parse(**fields)
  error = caught.value.content["error"]
  assert error["param"] == param and error["type"] == "invalid_request_error"
  assert caught.value.status == 400 and len(error["message"]) < 300


@pytest.mark.parametrize("limit", [512, 1024, 2048, 16_384])  # defaults of evaluation harnesses
def test_a_larger_limit_of_tokens_is_lowered_to_the_servers(limit):
  assert parse(max_tokens=limit).max_new_tokens == 64
  assert parse(max_completion_tokens=limit).max_new_tokens == 64


@pytest.mark.parametrize("temperature", [0, 1e-320, 1.2e-38, 9e-6])
def test_tiny_temperatures_take_the_likeliest_token(temperature):
  assert parse(temperature=temperature).temperature == 0
  assert parse(temperature=1e-5).temperature == 1e-5


def test_a_body_of_many_values_is_refused_before_it_is_parsed(monkeypatch):
  monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
  error = refusal(b"[" + b"{}," * 101 + b"0]")
  assert error.code == "context_length_exceeded" and "has 101 commas" in error.message


def test_an_unknown_model_is_not_found():
  with pytest.raises(ApiError) as caught:
    parse(model="gpt")
  assert (caught.value.status, caught.value.code) == (404, "model_not_found")
  assert "'m'" in caught.value.message


@pytest.mark.parametrize(
  "body",
  [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b"\xff\xfe",
    b'{"model": "m"',
    b'{"temperature": NaN}',
    b'{"temperature": -Infinity}',
    b'{"seed": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "\\ud800", "messages": []}',
    b'{"\\udfff": 1}',
  ],
  ids=lambda body: repr(body[:14]),
)
def test_what_is_no_json_object_is_refused(body):
  error = refusal(body)
  assert error.status == 400 and error.message.startswith("the body is")
