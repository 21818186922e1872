"""The openai library itself talks HTTP to a local server."""

import asyncio
import json
import logging
import sys
import traceback

import httpx2
import openai
import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, RefusedError
from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.teachers import openai_chat
from spatial_vlm.synthesis.teachers.openai_chat import (
  OpenAIChatSettings,
  OpenAIChatTeacher,
  check,
  key_from_environment,
)

KEY = "sk-a-key-that-nobody-may-see"


def teacher_of(server, key=None, **changes):
  settings = {
    "model": server.model.name,
    "base_url": f"{server.url}/v1",
    "timeout_s": 20.0,
    "temperature": 0.7,
    "max_output_tokens": 2048,
  }
  return OpenAIChatTeacher(OpenAIChatSettings(**{**settings, **changes}), key or server.key)


def ask(teacher, *questions):
  async def main():
    async with teacher:
      return await asyncio.gather(*map(teacher.ask, questions), return_exceptions=True)

  return asyncio.run(main())


def test_an_answer_comes_back_with_its_version_and_its_price(serve, question):
  server = serve()
  [reply] = ask(teacher_of(server), question())
  written = json.loads(reply.text)["reasoning"]
  assert written == f"You look.|The cat is left of the mug.|7|{question().image.hex()}"
  assert (reply.finish, reply.model_version) == ("STOP", f"{server.model.name}-001")
  usage = reply.raw["usage"]
  assert reply.usage.prompt == usage["prompt_tokens"] > reply.usage.cached > 0
  assert reply.usage.answer + reply.usage.thoughts == usage["completion_tokens"]
  assert reply.usage.thoughts > 0 and reply.usage.answer > 0


def test_what_is_sent(serve, question):
  server = serve()
  ask(teacher_of(server), question())
  sent = json.loads(server.last_body)
  assert sent["seed"] == 7 and sent["temperature"] == 0.7 and sent["max_completion_tokens"] == 2048
  schema = sent["response_format"]["json_schema"]["schema"]
  assert sent["response_format"]["type"] == "json_schema" and schema == question().schema
  assert [message["role"] for message in sent["messages"]] == ["system", "user"]
  ask(teacher_of(server), question(schema=None, system=""))
  plain = json.loads(server.last_body)
  assert "response_format" not in plain
  assert [message["role"] for message in plain["messages"]] == ["user"]


@pytest.mark.parametrize(
  ("faults", "error", "says"),
  [
    (Faults(rate_limited=1.0, retry_after_s=7.5), BusyError, "429"),
    (Faults(internal_error=1.0), BusyError, "500"),
    (Faults(unavailable=1.0), BusyError, "503"),
    (Faults(slow=1.0, slow_s=8.0), LostError, "timeout_s=2"),
    (Faults(cut=1.0, clears_after=9), LostError, "Connection"),
    (Faults(truncated_body=1.0), LostError, "no JSON"),
  ],
)
def test_transport_faults_are_classified_by_their_possible_cost(
  serve, question, faults, error, says
):
  server = serve(faults=faults)
  [raised] = ask(teacher_of(server, timeout_s=2.0 if faults.slow else 20.0), question())
  assert type(raised) is error and says in str(raised)
  assert server.stats().answers.total() == (1 if error is LostError else 0)
  if error is BusyError:
    assert raised.retry_after_s == (7.5 if faults.rate_limited else None)


@pytest.mark.parametrize(
  ("faults", "finish"),
  [
    (Faults(max_tokens=1.0), "MAX_TOKENS"),
    (Faults(safety=1.0), "SAFETY"),
    (Faults(fenced=1.0), "STOP"),
  ],
)
def test_unusable_replies_are_still_replies(serve, question, faults, finish):
  [reply] = ask(teacher_of(serve(faults=faults)), question())
  assert reply.finish == finish and (reply.text is None) == (finish == "SAFETY")


def test_a_server_that_is_not_there_costs_nothing(serve, question):
  server = serve()
  teacher = teacher_of(server)
  server.__exit__()
  [error] = ask(teacher, question())
  assert type(error) is BusyError and "ConnectError" in str(error)


def test_a_question_that_the_server_does_not_take_is_refused(serve, question):
  def fail(image, system, text, seed):
    raise ValueError("too large")

  [error] = ask(teacher_of(serve(fail)), question())
  assert type(error) is RefusedError and "400" in str(error)


def test_an_unknown_model_ends_the_run_and_is_named(serve, question):
  [error] = ask(teacher_of(serve(), model="gone"), question())
  assert isinstance(error, UsageError) and "model gone" in str(error)


def test_a_refusal_is_returned_as_a_refusal():
  choice = {"message": {"content": None, "refusal": "I cannot."}, "finish_reason": "stop"}
  reply = openai_chat._reply({"choices": [choice], "model": "m-1", "usage": None})
  assert (reply.finish, reply.text, reply.usage) == ("REFUSAL", None, Usage(0, 0, 0, 0))


@pytest.mark.parametrize(
  ("completion", "thoughts", "total", "expected"),
  [
    (100, 40, 110, (60, 40)),  # OpenAI: among those of the completion
    (100, 400, 510, (100, 400)),  # apart, and more of them
    (100, 40, 150, (100, 40)),  # apart, as the total says
    (100, 400, None, (100, 400)),
  ],
)
def test_reasoning_tokens_are_never_booked_negative(completion, thoughts, total, expected):
  usage = {"prompt_tokens": 10, "completion_tokens": completion, "total_tokens": total}
  usage["completion_tokens_details"] = {"reasoning_tokens": thoughts}
  assert openai_chat._usage(usage) == Usage(10, 0, *expected)


@pytest.mark.parametrize("tokens", [float("inf"), float("nan"), -1, 10**30, "9", [1]])
def test_tokens_that_are_no_number_lose_the_reply(tokens):
  with pytest.raises(ValueError, match="completion_tokens is .* no number of tokens"):
    openai_chat._usage({"completion_tokens": tokens})


def test_an_answer_that_is_all_reasoning_is_taken_from_there():
  message = {"content": None, "reasoning_content": "{}"}
  raw = {"choices": [{"message": message, "finish_reason": "stop"}], "model": "m"}
  assert openai_chat._reply(raw).text == "{}"


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(
  ("parameter", "says"), [("temperature", "temperature=none"), ("max_completion_tokens", "update")]
)
def test_a_setting_that_the_server_rejects_ends_the_run(serve, status, parameter, says):
  response = httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1"))
  message = f"Unsupported parameter: '{parameter}'"
  for body in ({"param": parameter}, {}):  # not all servers name it apart
    error = openai.BadRequestError(message, response=response, body=body)
    found = teacher_of(serve())._translate(error)
    assert isinstance(found, UsageError) and says in str(found)
  other = openai.BadRequestError("Image too large", response=response, body={})
  assert type(teacher_of(serve())._translate(other)) is RefusedError


def test_neither_variables_nor_proxies_nor_redirects_send_the_key_elsewhere(
  serve, question, monkeypatch
):
  monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
  monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9")
  [reply] = ask(teacher_of(serve()), question())
  assert reply.finish == "STOP"
  client = teacher_of(serve(), base_url="")._client
  assert str(client.base_url).rstrip("/") == openai_chat.OPENAI_URL
  assert not client._client.follow_redirects


def test_an_account_without_credit_ends_the_run(serve):
  """Its status code suggests a temporary error."""
  response = httpx2.Response(429, request=httpx2.Request("POST", "http://127.0.0.1"))
  body = {"message": "You exceeded your quota.", "code": "insufficient_quota"}
  error = openai.RateLimitError("You exceeded your quota.", response=response, body=body)
  assert isinstance(teacher_of(serve())._translate(error), UsageError)
  body["code"] = "rate_limit_exceeded"
  error = openai.RateLimitError("Too many.", response=response, body=body)
  assert type(teacher_of(serve())._translate(error)) is BusyError


def test_the_key_stays_secret(serve, question, caplog):
  """The server repeats a wrong one, and the model writes a right one."""
  caplog.set_level(logging.DEBUG)
  [error] = ask(teacher_of(serve(), key=KEY), question())
  assert isinstance(error, UsageError) and "[key]" in str(error)
  [reply] = ask(teacher_of(serve(lambda *asked: f"Yes {KEY}", key=KEY)), question())
  assert reply.text == "Yes [key]"
  logged = repr(error) + "".join(traceback.format_exception(error)) + repr(reply) + caplog.text
  assert KEY not in logged


def test_a_server_on_this_machine_may_do_without_a_key(monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  assert key_from_environment("http://localhost:8000/v1") == ""
  for url in ("", "https://example.org/v1"):
    with pytest.raises(UsageError, match="OPENAI_API_KEY"):
      key_from_environment(url)
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  assert key_from_environment("") == key_from_environment("http://127.0.0.1:8000/v1") == KEY


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"model": ""}, "/v1/models"),
    ({"base_url": "http://example.org/v1"}, "https://"),
    ({"timeout_s": -1.0}, "timeout_s"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": -0.1}, "temperature"),
  ],
)
def test_invalid_settings_are_refused_at_construction(changes, says):
  settings = {"model": "m", "base_url": "", "timeout_s": 1.0, "temperature": 1.0}
  settings["max_output_tokens"] = 9
  check(OpenAIChatSettings(**settings))
  with pytest.raises(UsageError, match=says):
    check(OpenAIChatSettings(**{**settings, **changes}))


def test_without_the_library_the_error_names_the_extra(monkeypatch, serve):
  monkeypatch.setitem(sys.modules, "openai", None)
  with pytest.raises(UsageError, match=r"pip install .*\[synthesis\]"):
    teacher_of(serve())


def test_a_temperature_of_none_is_left_out(serve, question):
  server = serve()
  ask(teacher_of(server, temperature=None), question())
  assert "temperature" not in json.loads(server.last_body)
