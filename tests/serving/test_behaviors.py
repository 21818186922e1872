"""Plain statements in the project's own words, with and without a recalled behavior."""

import concurrent.futures

import jax
import pytest

from spatial_vlm.inference.generation import inference_engine
from spatial_vlm.inference.policy import (
  AskedQuestion,
  decode_completions,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.tasks import TASKS

CHAT = "/v1/chat/completions"
KNOWN, UNKNOWN = "The cat is left of the mug.", "Cats purr."
BEHAVIOR = Behavior(
  name="behavior_left_of",
  instruction="yes when X x < Y x",
  relation="left of",
  questions=("The X is left of the Y.",),
  provenance=("train:1", "train:2"),
  tokens=20,
  saved_tokens=42.4,
)


@pytest.fixture(scope="module")
def recall():
  index = BehaviorIndex(Handbook(8, 400, (BEHAVIOR,)), LexicalEmbedder(), 0.8)
  return Recall(index, 48)


@pytest.fixture
def client(service_of, client_of, recall):
  return client_of(service_of("prompt_shapes=((64, 64),)", recall=recall))


@pytest.fixture
def reference(serving_policy, serving_mesh):
  """(image, statement, form, recall) -> the answer of the engine of whole batches, without a cache of behaviors."""
  policy, format = serving_policy, prompt_format([(128, 64)], "float32")
  engine = inference_engine(policy, serving_mesh)

  def answer(image, statement, form, recall=None):
    question = QuestionBuilder(TASKS["scenes"], form, recall)(statement)
    row = encode_question(policy.processor, image, question.text, question.system)
    asked = AskedQuestion(question.text, image, row, question.system)
    requests = make_requests(policy, serving_mesh, [asked], [0], [-1], format)
    completions = engine.generate(requests, jax.random.key(0), policy.sampling(24))
    return decode_completions(policy, completions)[0]

  return answer


def ask(client, body, image, statement, **spatial):
  response = client.post(CHAT, json=body(statement, image, spatial_vlm=spatial))
  assert response.status_code == 200, response.text
  return response.json()


def test_statements_are_answered_as_the_other_commands_answer_them(
  client, body, noise, reference, recall
):
  for spatial, form, recalls in (
    ({"form": "chain", "behaviors": False}, "chain", None),
    ({"form": "direct"}, "direct", None),
    ({"behaviors": True}, "chain", recall),
  ):
    answer = ask(client, body, noise(), KNOWN, **spatial)
    expected = reference(noise(), KNOWN, form, recalls)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["completion_tokens"] == expected.tokens
    saved = 42 if recalls else 0
    assert answer["usage"]["saved_tokens"] == answer["spatial_vlm"]["saved_tokens"] == saved
    assert answer["spatial_vlm"]["behavior"] == (BEHAVIOR.name if recalls else None)
  metrics = client.get("/metrics").text
  assert "spatial_vlm_recalled_behaviors_total 1.0" in metrics
  assert "spatial_vlm_saved_tokens_total 42.0" in metrics


@pytest.mark.parametrize(
  ("boxes", "ending", "verdict"),
  [
    ("cat [0, 20, 400, 600]", "Yes.", 1),
    ("cat [0, 20, 400, 600]", "No.", 0),
    ("none", "So?", None),
  ],
)
def test_a_chain_is_read(scripted, client_of, body, noise, read_events, boxes, ending, verdict):
  text = f"Summary: a\nCaption: {boxes}\nReasoning: c\nConclusion: {ending}"
  service, _ = scripted("max_new_tokens=144", text=text)
  client, request = client_of(service), body(KNOWN, noise(), spatial_vlm={"form": "chain"})
  whole = client.post(CHAT, json=request).json()
  assert whole["choices"][0]["message"]["content"] == text
  assert whole["spatial_vlm"] == {
    "behavior": None,
    "saved_tokens": 0,
    "boxes": {} if boxes == "none" else {"cat": [0, 20, 400, 600]},
    "verdict": verdict,
  }
  chunks = read_events(client.post(CHAT, json=request | {"stream": True}))
  assert [chunk for chunk in chunks if "spatial_vlm" in chunk] == [chunks[-1]]
  assert chunks[-1]["spatial_vlm"] == whole["spatial_vlm"]
  cut = client.post(CHAT, json=request | {"max_tokens": 5}).json()
  assert cut["choices"][0]["finish_reason"] == "length"
  assert cut["spatial_vlm"]["verdict"] is None


def test_a_behavior_is_recalled_where_one_fits_unless_the_request_refuses(client, body, noise):
  names = [
    ask(client, body, noise(), statement, **spatial)["spatial_vlm"]["behavior"]
    for statement, spatial in (
      (KNOWN, {"form": "chain"}),
      (KNOWN, {"form": "short"}),
      (KNOWN, {"form": "direct"}),
      (KNOWN, {"form": "chain", "behaviors": False}),
      (UNKNOWN, {"form": "chain", "behaviors": True}),
    )
  ]
  assert names == ["behavior_left_of", "behavior_left_of", None, None, None]


def test_a_text_without_a_form_goes_to_the_model_as_it_is(client, body, noise):
  own_words = client.post(CHAT, json=body(TASKS["scenes"].question(KNOWN, "chain"), noise())).json()
  chain = ask(client, body, noise(), KNOWN, form="chain", behaviors=False)
  assert own_words["choices"] == chain["choices"] and "spatial_vlm" not in own_words
  assert own_words["usage"].keys() < chain["usage"].keys()
  plain = client.post(CHAT, json=body(KNOWN, noise())).json()
  assert plain["usage"]["prompt_tokens"] < chain["usage"]["prompt_tokens"]


def test_clients_own_system_turns_do_not_fill_the_cache_of_behaviors(client, body, noise):
  """More different ones at a time than the cache has slots."""

  def request(number):
    turn = {"role": "system", "content": f"Be number {number}."}
    messages = [turn, *body("Is it?", noise())["messages"]]
    return client.post(CHAT, json={"model": "nano", "messages": messages, "max_tokens": 4})

  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    statuses = [response.status_code for response in pool.map(request, range(6))]
  assert statuses == [200] * 6
  assert "spatial_vlm_engine_failures_total 0.0" in client.get("/metrics").text
