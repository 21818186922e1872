"""The local server alone: what it checks, what it counts, and that its faults are reproducible."""

import json
import urllib.error
import urllib.request

import pytest

from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.local.local_model import question_hash


def call(server, path, body=None, **headers):
  """Status, headers and JSON of a response."""
  data = None if body is None else json.dumps(body).encode()
  request = urllib.request.Request(server.url + path, data, headers)
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    response = opener.open(request, timeout=20)
  except urllib.error.HTTPError as error:
    response = error
  with response:
    return response.status, response.headers, json.loads(response.read())


BODIES = {
  "camel": {
    "contents": [
      {"parts": [{"inlineData": {"mimeType": "image/png", "data": "__79"}}, {"text": "Left?"}]}
    ],
    "systemInstruction": {"parts": [{"text": "Look."}]},
    "generationConfig": {"seed": 3},
  },
  "snake": {
    "contents": [
      {"parts": [{"inline_data": {"mime_type": "image/png", "data": "//79"}}, {"text": "Left?"}]}
    ],
    "system_instruction": {"parts": [{"text": "Look."}]},
    "generation_config": {"seed": 3},
  },
}
PATH = "/v1beta/models/gemini-2.5-local:generateContent"


@pytest.mark.parametrize("spelling", BODIES)
def test_both_spellings_and_both_alphabets_are_understood(serve, spelling):
  server = serve()
  status, _, answer = call(server, PATH, BODIES[spelling], **{"x-goog-api-key": server.key})
  text = answer["candidates"][0]["content"]["parts"][0]["text"]
  assert status == 200 and json.loads(text)["reasoning"] == "Look.|Left?|3|fffefd"
  assert server.stats().requests == {question_hash(b"\xff\xfe\xfd", "Look.", "Left?", 3): 1}


def test_what_it_cannot_read_is_an_error_400(serve):
  server = serve()
  key = {"x-goog-api-key": server.key}
  assert call(server, PATH, {"contents": []}, **key)[0] == 400
  both = {"thinkingConfig": {"thinkingBudget": 1, "thinkingLevel": "LOW"}}
  status, _, answer = call(server, PATH, {**BODIES["camel"], "generationConfig": both}, **key)
  assert status == 400 and "together" in answer["error"]["message"]
  assert call(server, "/v1beta/elsewhere", **key)[0] == 404
  assert call(server, "/v1beta/batches/none", **key)[0] == 404


def test_without_the_right_key_nothing_is_served(serve):
  server = serve()
  assert call(server, PATH, BODIES["camel"])[0] == 403
  assert call(server, PATH, BODIES["camel"], **{"x-goog-api-key": "wrong"})[0] == 400
  chat = call(server, "/v1/chat/completions", {}, Authorization="Bearer wrong")
  assert chat[0] == 401 and not server.stats().requests


def test_the_same_faults_come_again_and_pass(serve):
  """A request gets the same faults in the same order on every server of the same seed, and then succeeds."""
  faults = Faults(rate_limited=0.4, internal_error=0.4, clears_after=3, retry_after_s=0.5)

  def statuses(seed):
    server = serve(faults=faults, seed=seed)
    key = {"x-goog-api-key": server.key}
    bodies = [{**BODIES["camel"], "generationConfig": {"seed": n}} for n in range(8)]
    answers = [[call(server, PATH, body, **key) for _ in range(4)] for body in bodies]
    for status, headers, _ in sum(answers, []):
      assert headers.get("Retry-After") == ("0.5" if status == 429 else None)
    return [[status for status, *_ in tries] for tries in answers]

  first = statuses(0)
  assert first == statuses(0) != statuses(1)
  assert {status for tries in first for status in tries[:3]} == {200, 429, 500}
  assert all(tries[3] == 200 for tries in first)


def test_the_count_can_be_asked_for(serve):
  server = serve()
  call(server, PATH, BODIES["camel"], **{"x-goog-api-key": server.key})
  _, _, counted = call(server, "/stats")
  assert counted["max_in_flight"] == 1 and counted["in_flight"] == 0
  assert list(counted["answers"].values()) == [1] and counted["tokens"] > 258
