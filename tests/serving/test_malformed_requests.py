"""Requests that a program wrote to break the server: every one gets an answer or an error object."""

import copy
import json
import random

import pytest
from json_changes import places, replaced

CHAT = "/v1/chat/completions"
VALUES = (
  *(
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    -(2**63),
    2**64,
    10**300,
    0.5,
    -0.0,
    1e308,
    1e-320,
    1.2e-38,
  ),
  *("", " ", "user", "\x00", "\ud83d\ude00", "\ufeff", "x" * 5000, "<|im_end|>", "<|image_pad|>"),
  *([], [[]], {}, {"": None}, [None] * 50, {"type": "text"}, "data:image/png;base64,", "https://x"),
)
HEADERS = (
  *({"Content-Type": "text/plain"}, {"Content-Type": "application/json;;;"}),
  *({"Content-Encoding": "gzip"}, {"Host": "evil.example"}, {"Authorization": "Bearer \xff"}),
  *({"Expect": "100-continue"}, {"Accept": "\x01"}, {"Content-Length": "-1"}),
)


def malformed(draw, valid):
  """Returns the bytes of a request that is broken in one or several places, or still valid by chance."""
  data = copy.deepcopy(draw.choice(valid))
  for _ in range(draw.randint(0, 3)):
    path = draw.choice([*places(data)])
    data = replaced(data, path, copy.deepcopy(draw.choice(VALUES)))  # changed in place later
  if isinstance(data, dict) and draw.random() < 0.2:
    data[draw.choice(["tools", "stop", "n", "spatial_vlm", "x", "logit_bias"])] = draw.choice(
      VALUES
    )
  content = bytearray(
    json.dumps(data, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
  )
  for _ in range(draw.choice([0, 0, 0, 1, 5])):
    if content:
      at = draw.randrange(len(content))
      kind = draw.randrange(3)
      if kind == 0:
        content[at] = draw.randrange(256)
      elif kind == 1:
        del content[at : at + draw.randint(1, 20)]
      else:
        content[at:at] = draw.randbytes(draw.randint(1, 20))
  return bytes(content)


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_requests_get_an_answer_or_an_error_object(
  scripted, client_of, body, noise, count
):
  service, engine = scripted("limits.body_bytes=20000", text="Yes.")
  client, draw = client_of(service), random.Random(0)
  options = {"include_usage": True}
  valid = [
    body("Is it?"),
    body("Is it?", noise(size=(8, 8)), max_tokens=3, stop=["a"], seed=1, n=2),
    body("Is it?", stream=True, stream_options=options, logprobs=True),
    body("Is it?", noise(size=(8, 8)), spatial_vlm={"form": "chain", "behaviors": False}),
  ]
  counts = {}
  for number in range(count):
    content = malformed(draw, valid)
    headers = {"Content-Type": "application/json"}
    if draw.random() < 0.03:
      headers |= draw.choice(HEADERS)
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    response = client.post(CHAT, content=content, headers=sent)
    status = response.status_code
    counts[status] = counts.get(status, 0) + 1
    assert status in (200, 400, 403, 404, 413, 415), (number, status, content, response.text)
    if status == 200:
      assert b"choices" in response.content
    else:
      error = response.json()["error"]
      assert error.keys() == {"message", "type", "param", "code"} and error["message"]
      assert "Traceback" not in response.text and ".py" not in response.text
  assert counts[200] > count // 20 and counts[400] > count // 4, counts
  assert client.post(CHAT, json=body("Is it?")).json()["choices"][0]["message"]["content"] == "Yes."
  assert not engine.requests and "spatial_vlm_requests 0.0" in client.get("/metrics").text
