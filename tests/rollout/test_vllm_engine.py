"""The engine over HTTP, against an imitation of vLLM that runs the model in transformers."""

import dataclasses
import socket

import jax
import numpy as np
import pytest
import vllm_imitation
from etils import epath

from spatial_vlm import process_rows, sharding
from spatial_vlm.config import UsageError
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import collate, encode_question, prompt_format
from spatial_vlm.parameters.partition import flatten
from spatial_vlm.rollout import vllm_client
from spatial_vlm.rollout.engine import CompiledEngine, Engine
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import SamplingSettings
from spatial_vlm.rollout.vllm_client import VllmClient, check_url
from spatial_vlm.rollout.vllm_engine import ServedModel, VllmEngine, request_seed
from spatial_vlm.train.policy_optimization import Constants, Minibatch, score_minibatch
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.types import Rollout

TOKENS = 6


@pytest.fixture(scope="module")
def policy(nano):
  return load_policy(str(nano))


@pytest.fixture(scope="module")
def moved(policy):
  """Weights that the server has not loaded at its start."""
  return jax.tree.map(lambda x: x * 1.5, policy.params)


@pytest.fixture(scope="module")
def server(nano):
  with vllm_imitation.serving(nano) as imitation:
    yield imitation


@pytest.fixture(autouse=True)
def no_faults(server, monkeypatch):
  server.forget()
  server.paused, server.stage = False, "idle"
  monkeypatch.setattr(vllm_client, "RETRY_WAITS_S", (0.0, 0.0))


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def requests(policy, mesh):
  """Three questions of different lengths; one has a system turn."""
  examples = list(SceneSource("train", 0, 4))[:3]
  texts = ["?", f"{examples[1].record.caption} True?", "List the objects."]
  systems = ["", "Use behavior_left_of: compare.", ""]
  rows = [
    encode_question(policy.processor, example.image, text, system)
    for example, text, system in zip(examples, texts, systems, strict=True)
  ]
  form = prompt_format([(96, 64)], "float32")
  prompts = collate(policy.processor, rows, [7, 3, 400], [1, 0, 1], form)
  images = [example.image for example in examples]
  return Requests(process_rows.make_global_batch(mesh, prompts), texts, images, systems)


def sampling(policy, group_size=2, temperature=1.0):
  special = policy.special
  return SamplingSettings(group_size, TOKENS, temperature, special.eos, special.pad)


@pytest.fixture
def engine_of(policy, server, mesh, tmp_path):
  def make(**changes):
    served = ServedModel(
      VllmClient(server.url, 60.0), epath.Path(tmp_path), "disk", True, np.dtype("float32"), 4
    )
    served = served._replace(**changes)
    return VllmEngine(
      served,
      policy.model,
      policy.forbidden_tokens,
      mesh,
      lambda weights: flatten(weights).__getitem__,
    )

  return make


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_its_log_probabilities_are_the_trainers(
  policy, moved, requests, engine_of, mesh, temperature
):
  engine: Engine = engine_of()
  engine.publish(moved)
  found = jax.device_get(
    engine.generate(requests, jax.random.key(1), sampling(policy, 2, temperature))
  )
  assert found.tokens.shape == (6, TOKENS) and found.mask[:, 0].all()
  assert not policy.forbidden_tokens[found.tokens[found.mask]].any()
  settings = dataclasses.replace(
    RlSettings(**dict.fromkeys([f.name for f in dataclasses.fields(RlSettings)])),
    temperature=temperature,
    chunk_tokens=64,
    remat="none",
    dtype="float32",
    micro_batches=1,
  )
  shape = (3, 2, TOKENS)
  rollout = Rollout(
    *(None, None),
    tokens=found.tokens.reshape(shape),
    mask=found.mask.reshape(shape),
    logp=found.logp.reshape(shape),
    **dict.fromkeys(["verdict", "correct", "length_tokens", "advantage"]),
  )
  with jax.set_mesh(mesh):
    logp = score_minibatch(
      moved,
      Minibatch(requests.prompts, rollout),
      Constants(policy.forbidden_tokens),
      model=policy.model,
      settings=settings,
    )
  logp = np.asarray(logp).reshape(found.logp.shape)
  np.testing.assert_allclose(found.logp[found.mask], logp[found.mask], atol=1e-4)


def test_greedy_answers_are_those_of_the_compiled_engine(policy, moved, requests, engine_of, mesh):
  greedy, key = sampling(policy, 1, 0.0), jax.random.key(0)
  compiled = CompiledEngine(policy.model, policy.forbidden_tokens, mesh, lambda weights: weights)
  answers = []
  for engine in (engine_of(), compiled):
    engine.publish(moved)
    answers.append(jax.device_get(engine.generate(requests, key, greedy)))
  np.testing.assert_array_equal(answers[0].tokens, answers[1].tokens)
  np.testing.assert_allclose(answers[0].logp, answers[1].logp, atol=1e-4)


def test_answers_depend_on_key_prompt_and_sample_alone(policy, moved, requests, engine_of):
  engine = engine_of()
  engine.publish(moved)
  key, twice = jax.random.key(5), sampling(policy)
  first, again = (jax.device_get(engine.generate(requests, key, twice)) for _ in range(2))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  alone = Requests(
    jax.tree.map(lambda x: x[2:], requests.prompts),
    *(rows[2:] for rows in (requests.texts, requests.images, requests.systems)),
  )
  np.testing.assert_array_equal(engine.generate(alone, key, twice).tokens, first.tokens[4:])
  assert not np.array_equal(first.tokens[0], first.tokens[1])
  other = engine.generate(requests, jax.random.key(6), twice)
  assert not np.array_equal(other.tokens, first.tokens)


def test_seeds_leave_room_for_the_samples_of_a_group():
  seeds = [request_seed(jax.random.key(0), id) for id in range(64)]
  assert len(set(seeds)) == 64 and all(0 < seed < 2**62 for seed in seeds)
  assert max(seeds) > 2**60


@pytest.mark.parametrize(
  ("transfer", "calls"),
  [
    ("disk", ("/start_weight_update", "/update_weights", "/finish_weight_update")),
    ("reload", ("/collective_rpc",)),
  ],
)
def test_an_update_pauses_transfers_resumes_and_compares(
  policy, moved, engine_of, server, tmp_path, transfer, calls
):
  engine = engine_of(transfer=transfer)
  server.forget()
  engine.publish(moved)
  update = ["/pause?mode=wait", *calls, "/resume", "/weight_checker"]
  assert server.calls == update
  assert not list(
    tmp_path.iterdir()
  )  # the weights of an update are removed when the server holds them
  engine.release()
  engine.publish(jax.tree.map(lambda x: x + 0, moved))
  assert server.calls == update  # equal weights are not sent again
  engine.publish(policy.params)
  assert server.calls == 2 * update
  if transfer == "disk":
    assert server.version == "weights-000002"


def test_a_wrong_checksum_names_the_tensor(moved, engine_of, server):
  engine = engine_of()
  server.faults.corrupt = "model.language_model.layers.1.self_attn.k_proj.weight"
  with pytest.raises(
    UsageError,
    match=r"1 tensors differ and 0 are missing.*\.layers\.1\.self_attn\.qkv_proj\.weight",
  ):
    engine.publish(moved)
  server.faults.corrupt = None
  engine.publish(moved)  # nothing was taken for published


DISK_PATHS = (
  *("/init_weight_transfer_engine", "/start_weight_update", "/update_weights"),
  "/finish_weight_update",
)


@pytest.mark.parametrize(
  ("transfer", "faults", "message"),
  [
    ("disk", {"absent": ("/weight_checker",)}, "pull request 51350 .*engine.checksums=False"),
    ("reload", {"absent": ("/weight_checker",)}, "pull request 51350 .*engine.checksums=False"),
    ("disk", {"absent": DISK_PATHS}, "has no /init_weight_transfer_engine, .*start the server"),
    ("reload", {"absent": ("/pause", "/collective_rpc")}, "has no /pause, .*DEV_MODE=1"),
    ("disk", {"backend": "nccl"}, "pull request 52152 .*choose engine.transfer=reload"),
    ("disk", {"ranks": 2}, "over 2 ranks.*--tensor-parallel-size 1"),
  ],
)
def test_servers_that_cannot_be_updated_are_refused_at_the_start(
  engine_of, server, tmp_path, transfer, faults, message
):
  server.faults = vllm_imitation.Faults(**faults)
  with pytest.raises(UsageError, match=message) as error:
    engine_of(transfer=transfer)
  assert one_sentence(error) and not server.paused and not list(tmp_path.iterdir())


def test_released_servers_are_updated_without_verification(moved, engine_of, server):
  """They have no checker and no backend `disk`; several ranks may share a tensor."""
  absent = ("/weight_checker", *DISK_PATHS)
  server.faults = vllm_imitation.Faults(absent=absent, backend="", ranks=2)
  engine = engine_of(transfer="reload", compares_checksums=False)
  server.forget()
  engine.publish(moved)
  assert server.calls == ["/pause?mode=wait", "/collective_rpc", "/resume"]


@pytest.mark.parametrize("stage", ["started", "updated"])
def test_an_update_that_was_killed_does_not_stop_the_next(moved, engine_of, server, stage):
  server.paused, server.stage = True, stage
  engine = engine_of()
  engine.publish(moved)
  assert server.version == "weights-000001" and not server.paused


def test_an_update_that_fails_does_not_stop_the_next(moved, engine_of, server):
  engine = engine_of()
  server.faults.status["/update_weights"] = [(500, {"error": "no space"})]
  with pytest.raises(UsageError, match="answered 500"):
    engine.publish(moved)
  assert server.paused and server.stage == "started"  # the weights may be half replaced
  engine.publish(moved)
  assert not server.paused


def test_the_key_of_the_environment_is_sent(moved, engine_of, server, monkeypatch):
  server.faults.key = "secret"
  with pytest.raises(UsageError, match="answered 401 .*VLLM_API_KEY") as error:
    engine_of()
  monkeypatch.setenv("VLLM_API_KEY", "secret")
  engine_of().publish(moved)
  assert "secret" not in str(error.value)


def test_a_server_that_computes_in_another_type_is_noticed(moved, engine_of):
  with pytest.raises(UsageError, match="--dtype equal to engine.dtype"):
    engine_of(dtype=np.dtype("bfloat16")).publish(moved)


def one_sentence(error):
  return "\n" not in str(error.value) and len(str(error.value)) < 600


def test_a_server_that_is_down(policy, mesh):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  with pytest.raises(UsageError, match="cannot be reached .*start `vllm serve`") as error:
    VllmClient(f"http://127.0.0.1:{port}", 5.0).model()
  assert one_sentence(error)


def test_a_slow_server(engine_of, moved, server):
  engine = engine_of(client=VllmClient(server.url, 0.2))
  server.faults.delay_s = 0.6
  with pytest.raises(UsageError, match="silent for engine.timeout_s = 0.2") as error:
    engine.publish(moved)
  assert one_sentence(error)


@pytest.mark.parametrize(
  ("status", "body", "message"),
  [
    (400, {"error": {"message": "top_k\nis wrong"}}, r"answered 400 \('top_k is wrong'\)"),
    (401, {"detail": "no key"}, r"answered 401 \('no key'\)"),
    (404, {"detail": "Not Found"}, "answered 404"),
    (500, {"error": {"message": "x" * 9000}}, "answered 500 "),
  ],
)
def test_errors_of_the_server_are_one_sentence(engine_of, moved, server, status, body, message):
  engine = engine_of()
  server.faults.status["/pause"] = [(status, body)]
  with pytest.raises(UsageError, match=message) as error:
    engine.publish(moved)
  assert one_sentence(error)
  engine.publish(moved)  # nothing was taken for published


def test_a_busy_server_is_asked_again(policy, moved, requests, engine_of, server):
  engine = engine_of()
  engine.publish(moved)
  server.faults.status["/v1/chat/completions"] = [(503, {}), (429, {})]
  engine.generate(requests, jax.random.key(0), sampling(policy))
  server.faults.status["/v1/chat/completions"] = [(503, {"detail": "overloaded"})] * 99
  with pytest.raises(UsageError, match=r"answered 503 \('overloaded'\)"):
    engine.generate(requests, jax.random.key(0), sampling(policy))


def test_a_prompt_that_the_server_reads_otherwise(policy, moved, requests, engine_of, server):
  engine = engine_of()
  engine.publish(moved)
  other = dataclasses.replace(requests, texts=["!", *requests.texts[1:]])
  with pytest.raises(UsageError, match="differs at token .*its chat template"):
    engine.generate(other, jax.random.key(0), sampling(policy))


def test_too_long_prompts_are_not_sent(policy, moved, requests, engine_of, server):
  engine = engine_of()
  engine.publish(moved)
  server.forget()
  long = dataclasses.replace(sampling(policy), max_new_tokens=500)
  with pytest.raises(UsageError, match="raise vLLM's --max-model-len or lower max_new_tokens"):
    engine.generate(requests, jax.random.key(0), long)
  assert server.calls == []


def changed(**changes):
  def change(found):
    found["choices"][0] |= changes
    return found

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (changed(token_ids=None), "cannot be used"),
    (changed(token_ids=[]), "0 token_ids"),
    (changed(token_ids=[10**9] * TOKENS), "a token id is outside"),
    (changed(logprobs=None), "cannot be used"),
    (changed(logprobs={"content": [{"logprob": float("nan")}] * TOKENS}), "cannot be used"),
    (changed(finish_reason="abort"), "finish_reason is 'abort'"),
    (changed(index=5), "2 choices for n = 2"),
    (lambda found: {}, "no prompt_token_ids"),
    (lambda found: [], "no prompt_token_ids"),
  ],
)
def test_completions_that_cannot_be_used(
  policy, moved, requests, engine_of, server, change, message
):
  engine = engine_of()
  engine.publish(moved)
  server.faults.change = change
  with pytest.raises(UsageError, match=message) as error:
    engine.generate(requests, jax.random.key(0), sampling(policy))
  assert one_sentence(error)


def test_without_weights_it_samples_nothing(policy, requests, engine_of):
  with pytest.raises(RuntimeError, match="call publish first"):
    engine_of().generate(requests, jax.random.key(0), sampling(policy))


@pytest.mark.parametrize(
  "url",
  ["", "127.0.0.1:8000", "ftp://x", "http://", "http://x:port", "http://u:p@x", "http://x/v1"],
)
def test_addresses_that_are_none(url):
  with pytest.raises(UsageError, match="engine.url is"):
    check_url(url)
