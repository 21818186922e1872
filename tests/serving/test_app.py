"""The routes, driven in this process: whole answers, streams, several samples, errors."""

import pytest

CHAT = "/v1/chat/completions"


def test_an_answer_is_a_chat_completion(client, body, noise):
  response = client.post(CHAT, json=body("Is it so?", noise(), max_tokens=7))
  assert response.status_code == 200, response.text
  answer = response.json()
  assert answer["object"] == "chat.completion" and answer["model"] == "nano"
  assert answer["id"].startswith("chatcmpl-") and isinstance(answer["created"], int)
  (choice,) = answer["choices"]
  assert choice["index"] == 0 and choice["finish_reason"] in ("stop", "length")
  assert choice["message"]["role"] == "assistant" and choice["logprobs"] is None
  usage = answer["usage"]
  assert usage["completion_tokens"] <= 7 and usage["prompt_tokens"] > 5
  assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
  assert "spatial_vlm" not in answer


def test_a_stream_says_the_same_as_a_whole_answer(client, body, noise, read_events):
  request = body("Is it so?", noise(), logprobs=True, n=2, temperature=1.0, seed=3)
  whole = client.post(CHAT, json=request).json()
  options = {"stream": True, "stream_options": {"include_usage": True}}
  chunks = read_events(client.post(CHAT, json=request | options))
  *parts, last = chunks
  assert last["choices"] == [] and last["usage"] == whole["usage"]
  assert all(part["usage"] is None for part in parts)
  assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
  assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
  for index, choice in enumerate(whole["choices"]):
    own = [p["choices"][0] for p in parts if p["choices"][0]["index"] == index]
    assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
    assert [c["finish_reason"] for c in own][-1] == choice["finish_reason"]
    assert all(c["finish_reason"] is None for c in own[:-1])
    tokens = [token for c in own for token in c["logprobs"]["content"]]
    assert tokens == choice["logprobs"]["content"] and tokens
  texts = {choice["message"]["content"] for choice in whole["choices"]}
  assert len(texts) == 2


def test_a_seed_repeats_an_answer(client, body):
  sampled = [
    client.post(CHAT, json=body("Say it.", temperature=1.5, seed=seed)).json()
    for seed in (5, 5, 6, None, None)
  ]
  a, b, c, d, e = (answer["choices"][0]["message"]["content"] for answer in sampled)
  assert a == b and len({a, c, d, e}) == 4


def test_log_probabilities_are_those_of_the_tokens(client, body):
  answer = client.post(CHAT, json=body("Say it.", logprobs=True, max_tokens=6)).json()
  (choice,) = answer["choices"]
  tokens = choice["logprobs"]["content"]
  assert (
    b"".join(bytes(t["bytes"]) for t in tokens).decode(errors="replace")
    == choice["message"]["content"]
  )
  assert all(t["logprob"] <= 0 and t["top_logprobs"] == [] for t in tokens)
  asked = body("Say it.", logprobs=True, top_logprobs=3, max_tokens=6)
  with_others = client.post(CHAT, json=asked).json()["choices"][0]["logprobs"]["content"]
  assert [t | {"top_logprobs": []} for t in with_others] == tokens
  for token in with_others:
    first, *others = token["top_logprobs"]  # the answer is greedy
    assert first == {name: token[name] for name in ("token", "logprob", "bytes")}
    assert len(others) == 2 and first["logprob"] >= others[0]["logprob"] >= others[1]["logprob"]


def test_a_stop_string_ends_the_answer_before_it(client, body, read_events):
  request = body("Say it.", temperature=1.0, seed=1)
  whole = client.post(CHAT, json=request).json()["choices"][0]["message"]["content"]
  stop = whole[len(whole) // 2 :][:3]
  cut = client.post(CHAT, json=request | {"stop": [stop, "never written"]}).json()
  assert cut["choices"][0]["message"]["content"] == whole[: whole.index(stop)]
  assert cut["choices"][0]["finish_reason"] == "stop"
  chunks = read_events(client.post(CHAT, json=request | {"stop": stop, "stream": True}))
  text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
  assert text == whole[: whole.index(stop)]


def test_turns_and_images_are_read_in_their_order(client, body, noise):
  one, two = noise(1), noise(2)
  asked = [
    client.post(CHAT, json=body("Which?", *images)).json()["usage"]["prompt_tokens"]
    for images in ([], [one], [one, two])
  ]
  assert asked[2] - asked[1] == asked[1] - asked[0] > 0
  turns = [
    {"role": "system", "content": "Be short."},
    *body("What?", one)["messages"],
    {"role": "assistant", "content": "A mug."},
    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
  ]
  answer = client.post(CHAT, json={"model": "nano", "messages": turns})
  assert answer.status_code == 200, answer.text


def test_the_model_is_listed(client):
  (model,) = client.get("/v1/models").json()["data"]
  assert model["id"] == "nano" and model["object"] == "model"
  assert model["max_model_len"] == 128 + 24
  assert client.get("/v1/models/nano").json() == model
  absent = client.get("/v1/models/other/model")
  assert (absent.status_code, absent.json()["error"]["code"]) == (404, "model_not_found")


def test_health_and_metrics(client, body):
  assert client.get("/health").json() == {"status": "ok"}
  answer = client.post(CHAT, json=body("Say it.", max_tokens=5)).json()
  text = client.get("/metrics").text
  tokens = answer["usage"]["completion_tokens"]
  assert f"spatial_vlm_generated_tokens_total {tokens}.0" in text
  assert 'spatial_vlm_http_responses_total{route="/v1/chat/completions",status="200"} 1.0' in text
  assert "spatial_vlm_request_seconds_count 1.0" in text and "spatial_vlm_requests 0.0" in text


@pytest.mark.parametrize(
  ("method", "path", "status"),
  [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("GET", "/v1/files", 404), ("PUT", "/x", 404)],
)
def test_other_routes_get_an_error_object(client, method, path, status):
  response = client.request(method, path)
  assert response.status_code == status
  assert response.json()["error"]["type"] == "invalid_request_error"
