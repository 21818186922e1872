"""google-genai itself talks HTTP to a local server: requests, replies, and the error that each fault becomes."""

import asyncio
import json
import logging
import sys
import traceback

import httpx2
import pytest
from google.genai import errors

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, RefusedError
from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.local.local_model import question_hash
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.teachers import gemini as gemini_module
from spatial_vlm.synthesis.teachers.gemini import GeminiSettings, check, key_from_environment
from spatial_vlm.synthesis.verify.checks import find_unfinished

SETTINGS = {
  "model": "gemini-2.5-pro",
  "api_version": "v1beta",
  "base_url": "",
  "timeout_s": 60.0,
  "temperature": 0.7,
  "max_output_tokens": 8192,
  "thinking_budget": 1024,
  "thinking_level": None,
}
KEY = "AIza-a-key-that-nobody-may-see"


def ask(teacher, *questions):
  """Replies or errors, asked all at once."""

  async def main():
    async with teacher:
      return await asyncio.gather(*map(teacher.ask, questions), return_exceptions=True)

  return asyncio.run(main())


def test_an_answer_comes_back_with_its_version_and_its_price(serve, gemini, question):
  [reply] = ask(gemini(serve()), question())
  written = json.loads(reply.text)["reasoning"]
  assert written == f"You look.|The cat is left of the mug.|7|{question().image.hex()}"
  assert (reply.finish, reply.model_version) == ("STOP", "gemini-2.5-local-001")
  usage = reply.raw["usageMetadata"]
  assert reply.usage.prompt == usage["promptTokenCount"] > reply.usage.cached > 0
  assert reply.usage.cached == usage["cachedContentTokenCount"]
  assert reply.usage.answer == usage["candidatesTokenCount"] > 0
  assert reply.usage.thoughts == usage["thoughtsTokenCount"] > 0
  assert "c2lnbmF0dXJl" not in json.dumps(reply.raw)  # the signature of the thoughts


def test_thoughts_are_no_part_of_the_text(gemini, serve, question):
  teacher = gemini(serve())
  parts = [{"text": "hm", "thought": True}, {"text": "Yes"}, {"text": "."}]
  raw = {"candidates": [{"content": {"parts": parts}, "finishReason": "STOP"}]}
  assert teacher.read_reply(raw).text == "Yes."
  parts.pop(), parts.pop()
  raw["candidates"][0]["finishReason"] = "MAX_TOKENS"
  assert teacher.read_reply(raw).text is None


def test_what_is_sent(serve, gemini, question):
  server = serve()
  ask(gemini(server), question())
  sent = json.loads(server.last_body)
  config = sent["generationConfig"]
  assert config["seed"] == 7 and config["temperature"] == 0.7 and config["maxOutputTokens"] == 8192
  assert config["responseMimeType"] == "application/json"
  schema = config["responseJsonSchema"]
  assert schema["propertyOrdering"] == list(schema["properties"]) == ["reasoning", "conclusion"]
  assert [list(part)[0] for part in sent["contents"][0]["parts"]] == ["inlineData", "text"]


def test_plain_text_is_asked_for_without_a_schema(serve, gemini, question):
  server = serve()
  teacher = gemini(server)
  plain = question(schema=None, system="")
  ask(teacher, plain)
  for body in (json.loads(server.last_body), teacher.request(plain)):
    assert not {"responseMimeType", "responseJsonSchema"} & body["generationConfig"].keys()
    assert "systemInstruction" not in body


def test_nested_schemas_keep_their_order_too(serve, gemini, question):
  box = {"type": "object", "properties": {"name": {"type": "string"}, "box": {"type": "array"}}}
  schema = {"type": "object", "properties": {"z": {"type": "array", "items": box}, "a": box}}
  server = serve()
  ask(gemini(server), question(schema=schema))
  sent = json.loads(server.last_body)["generationConfig"]["responseJsonSchema"]
  assert sent["propertyOrdering"] == ["z", "a"]
  assert sent["properties"]["z"]["items"]["propertyOrdering"] == ["name", "box"]
  assert "propertyOrdering" not in schema


@pytest.mark.parametrize(
  ("changes", "sent"),
  [
    ({"thinking_budget": 1024}, {"thinkingbudget": 1024}),
    ({"thinking_budget": 0}, {"thinkingbudget": 0}),
    ({"thinking_budget": None, "thinking_level": "low"}, {"thinkinglevel": "LOW"}),
    ({"thinking_budget": None}, None),
  ],
)
def test_thinking_is_configured_as_each_model_generation_expects(
  serve, gemini, question, changes, sent
):
  server = serve(model="gemini-local")
  ask(gemini(server, **changes), question())
  thinking = json.loads(server.last_body)["generationConfig"].get("thinkingConfig")
  thinking = thinking and {k.replace("_", "").lower(): v for k, v in thinking.items()}
  assert thinking == sent


@pytest.mark.parametrize(
  ("faults", "error", "says"),
  [
    (Faults(rate_limited=1.0, retry_after_s=7.5), BusyError, "429"),
    (Faults(internal_error=1.0), BusyError, "500"),
    (Faults(unavailable=1.0), BusyError, "503"),
    (Faults(slow=1.0, slow_s=8.0), LostError, "timeout_s=2"),
    (Faults(cut=1.0), LostError, "connection"),
    (Faults(truncated_body=1.0), LostError, "no JSON"),
  ],
)
def test_transport_faults_are_classified_by_their_possible_cost(
  serve, gemini, question, faults, error, says
):
  server = serve(faults=faults)
  [raised] = ask(gemini(server, timeout_s=2.0 if faults.slow else 20.0), question())
  assert type(raised) is error and says in str(raised)
  asked = question()
  identity = question_hash(asked.image, asked.system, asked.text, asked.seed)
  assert server.stats().answers[identity] == (1 if error is LostError else 0)
  if error is BusyError:
    assert raised.retry_after_s == (7.5 if faults.rate_limited else None)


def test_a_question_is_sent_once(serve, gemini, question):
  """The library's own retries are off, even where they are on by default."""
  server = serve(faults=Faults(cut=1.0, clears_after=9))
  ask(gemini(server), question())
  assert server.stats().requests.total() == 1


@pytest.mark.parametrize(
  ("faults", "finish", "text"),
  [
    (Faults(max_tokens=1.0), "MAX_TOKENS", '{"reasoning"'),
    (Faults(safety=1.0), "SAFETY", None),
    (Faults(blocked_prompt=1.0), "PROHIBITED_CONTENT", None),
    (Faults(fenced=1.0), "STOP", "```json"),
  ],
)
def test_unusable_replies_are_still_replies(serve, gemini, question, faults, finish, text):
  [reply] = ask(gemini(serve(faults=faults)), question())
  assert reply.finish == finish and reply.usage.prompt > 0
  assert reply.text is None if text is None else reply.text.startswith(text)


def test_the_reply_names_the_version_that_answered(serve, gemini, question):
  [reply] = ask(gemini(serve(faults=Faults(other_version=1.0))), question())
  assert reply.model_version == "gemini-2.5-local-002"


def test_sixty_four_questions_at_once(serve, gemini, question):
  server = serve(faults=Faults(slow=1.0, slow_s=0.2))
  questions = [question(seed=seed) for seed in range(64)]
  replies = ask(gemini(server), *questions)
  said = [json.loads(reply.text)["reasoning"].split("|")[2] for reply in replies]
  assert said == [str(seed) for seed in range(64)]
  assert server.stats().max_in_flight > 32


@pytest.mark.parametrize(
  ("header", "delay", "wait_s"),
  [
    (None, "3.5s", 3.5),
    ("2", "7s", 7.0),
    ("9", "7s", 9.0),
    ("2", "soon", 2.0),
    (None, "nans", None),
    (None, None, None),
  ],
)
def test_the_retry_delay_may_be_in_the_body(serve, gemini, header, delay, wait_s):
  """The longer delay counts, because a request sent too early counts against the limit."""
  teacher = gemini(serve())
  info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
  details = [{"@type": "other"}, info] if delay else "none"
  response = httpx2.Response(429, headers={"Retry-After": header} if header else {})
  error = errors.ClientError(429, {"error": {"code": 429, "details": details}}, response)
  busy = teacher._translate(error)
  assert type(busy) is BusyError and busy.retry_after_s == wait_s


def test_a_proxys_html_page_is_reported_in_one_line(serve, gemini):
  page = {"message": f"<html>\n{'x' * 5000} </html>", "status": "Bad Gateway"}
  error = gemini(serve())._translate(errors.ServerError(502, page, None))
  assert (
    type(error) is BusyError and "Bad Gateway. <html> xxx" in str(error) and len(str(error)) < 600
  )


@pytest.mark.parametrize(
  ("raw", "finish"),
  [
    ({"usageMetadata": {"promptTokenCount": 9}}, "NO_CANDIDATE"),
    ({"candidates": [], "usageMetadata": {"promptTokenCount": 9}}, "NO_CANDIDATE"),
    ({"promptFeedback": {}, "usageMetadata": {"promptTokenCount": 9}}, "NO_CANDIDATE"),
    (
      {"candidates": [{"index": 0}], "usageMetadata": {"promptTokenCount": 9}},
      "FINISH_REASON_UNSPECIFIED",
    ),
    (
      {
        "candidates": [{"content": {"role": "model"}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "thoughtsTokenCount": None},
      },
      "STOP",
    ),
  ],
)
def test_an_empty_answer_was_billed_and_is_kept(serve, gemini, raw, finish):
  reply = gemini(serve()).read_reply(raw)
  assert (reply.text, reply.finish, reply.usage) == (None, finish, Usage(9, 0, 0, 0))
  assert reply.raw == raw and find_unfinished(reply)


def test_a_wrong_key_ends_the_run_and_stays_secret(serve, gemini, question, caplog):
  """The server repeats the key in its message, as some do."""
  caplog.set_level(logging.DEBUG)
  [error] = ask(gemini(serve(), key=KEY), question())
  assert isinstance(error, UsageError) and "GEMINI_API_KEY" in str(error)
  logged = str(error) + repr(error) + "".join(traceback.format_exception(error)) + caplog.text
  assert "[key]" in logged and KEY not in logged


@pytest.mark.parametrize(
  "faults",
  [
    Faults(),
    *(Faults(**{kind: 1.0}) for kind in ("rate_limited", "cut", "truncated_body", "safety")),
  ],
)
def test_the_key_is_in_no_log_no_error_and_no_reply(serve, gemini, question, caplog, faults):
  """Not even where the model writes it."""
  caplog.set_level(logging.DEBUG)
  server = serve(lambda image, system, text, seed: f"Yes {KEY}", key=KEY, faults=faults)
  [outcome] = ask(gemini(server), question())
  logged = repr(outcome) + caplog.text
  if isinstance(outcome, Exception):
    logged += "".join(traceback.format_exception(outcome))
  assert KEY not in logged


def test_an_unknown_model_ends_the_run_and_is_named(serve, gemini, question):
  [error] = ask(gemini(serve(), model="gemini-2.5-gone"), question())
  assert isinstance(error, UsageError) and "(model gemini-2.5-gone)" in str(error)


def test_a_question_that_the_server_does_not_take_is_refused(serve, gemini, question):
  def fail(image, system, text, seed):
    raise ValueError("too large")

  [error] = ask(gemini(serve(fail)), question())
  assert type(error) is RefusedError and "400" in str(error)


def test_a_server_that_is_not_there_costs_nothing(serve, gemini, question):
  server = serve()
  teacher = gemini(server)
  server.__exit__()
  [error] = ask(teacher, question())
  assert type(error) is BusyError and "nothing was sent" in str(error)


@pytest.mark.parametrize(
  "raw", [{}, {"answer": 3}, {"candidates": 3}, {"candidates": [{"content": {"parts": [3]}}]}]
)
def test_json_of_another_form_is_rejected(serve, gemini, raw):
  with pytest.raises(LostError, match="no reply of Gemini"):
    gemini(serve()).read_reply(raw)


def test_no_proxy_is_used_for_localhost(serve, gemini, question, monkeypatch):
  monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
  [reply] = ask(gemini(serve()), question())
  assert reply.finish == "STOP"


def test_no_environment_variable_redirects_the_key(serve, gemini, question, monkeypatch):
  monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
  monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
  teacher = gemini(serve(), base_url="")
  assert teacher._client._api_client._http_options.base_url == gemini_module.GOOGLE_URL
  assert not teacher._client._api_client.vertexai
  assert not teacher._http.follow_redirects  # the key would be sent too


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"thinking_level": "low"}, "only one"),
    ({"thinking_budget": None, "thinking_level": "low"}, "give thinking_budget"),
    ({"model": "gemini-3-pro-preview"}, "give thinking_level"),
    ({"model": "gemini-3.8-flash", "thinking_budget": None, "thinking_level": "most"}, "'most'"),
    ({"thinking_budget": 8192}, "leave room"),
    ({"thinking_budget": 0}, "at least 128 tokens"),
    ({"thinking_budget": 127}, "at least 128 tokens"),
    ({"model": "models/gemini-2.5-pro", "thinking_budget": 0}, "at least 128 tokens"),
    ({"model": "gemini-2.5-flash", "thinking_budget": -2}, "at least 0 tokens"),
    ({"model": ""}, "gemini-2.5-pro"),
    ({"timeout_s": 0.0}, "timeout_s"),
    ({"max_output_tokens": 0, "thinking_budget": None}, "max_output_tokens"),
    ({"temperature": 2.5}, "temperature"),
    ({"base_url": "http://example.org"}, "https://"),
    ({"base_url": "https://user:secret@example.org"}, "environment"),
    ({"base_url": "example.org"}, "an address"),
  ],
)
def test_invalid_settings_are_refused_at_construction(changes, says):
  for good in ({}, {"thinking_budget": -1}, {"model": "gemini-2.5-flash", "thinking_budget": 0}):
    check(GeminiSettings(**{**SETTINGS, **good}))
  with pytest.raises(UsageError, match=says) as error:
    check(GeminiSettings(**{**SETTINGS, **changes}))
  assert "secret" not in str(error.value)


def test_the_key_comes_from_the_environment(monkeypatch):
  for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY"):
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(UsageError, match="GEMINI_API_KEY"):
    key_from_environment()
  monkeypatch.setenv("GEMINI_API_KEY", " mine ")
  assert key_from_environment() == "mine"


def test_without_the_library_the_error_names_the_extra(monkeypatch, serve, gemini):
  monkeypatch.setitem(sys.modules, "google.genai", None)
  monkeypatch.delattr("google.genai", raising=False)
  with pytest.raises(UsageError, match=r"pip install .*\[synthesis\]"):
    gemini(serve())


def test_a_temperature_of_none_is_left_out(serve, gemini, question):
  server = serve()
  ask(gemini(server, temperature=None), question())
  assert "temperature" not in json.loads(server.last_body)["generationConfig"]
  assert (
    "temperature" not in gemini(server, temperature=None).request(question())["generationConfig"]
  )
