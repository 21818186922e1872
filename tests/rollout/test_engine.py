"""The compiled engine behind the protocol: publish, generate, release."""

import jax
import numpy as np
import pytest

from spatial_vlm import process_rows, sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import collate, encode_question, prompt_format
from spatial_vlm.model import qwen3_vl
from spatial_vlm.rollout import engine as engine_module
from spatial_vlm.rollout.engine import CompiledEngine, Engine
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import Completions, SamplingSettings, generate


@pytest.fixture(scope="module")
def policy(nano):
  return load_policy(str(nano))


@pytest.fixture(scope="module")
def sampling(policy):
  return SamplingSettings(2, 6, temperature=1.0, eos=policy.special.eos, pad=policy.special.pad)


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def requests(policy, mesh):
  examples = list(SceneSource("train", 0, 2))
  texts = [f"{example.record.caption} True?" for example in examples]
  rows = [
    encode_question(policy.processor, example.image, text)
    for example, text in zip(examples, texts, strict=True)
  ]
  prompts = collate(policy.processor, rows, [0, 1], [1, 0], prompt_format([(64, 64)], "float32"))
  images = [example.image for example in examples]
  return Requests(process_rows.make_global_batch(mesh, prompts), texts, images, [""] * 2)


def test_it_samples_with_the_weights_published_last(policy, mesh, requests, sampling):
  converted = []

  def to_rollout_weights(weights):
    converted.append(weights)
    return weights

  engine: Engine = CompiledEngine(policy.model, policy.forbidden_tokens, mesh, to_rollout_weights)
  key = jax.random.key(3)
  louder = jax.tree.map(lambda x: x * 3, policy.params)
  found = []
  for weights in (louder, policy.params):
    engine.publish(weights)
    found.append(engine.generate(requests, key, sampling))
  expected = generate(
    policy.params,
    requests.prompts,
    key,
    policy.forbidden_tokens,
    model=policy.model,
    sampling=sampling,
  )
  jax.tree.map(np.testing.assert_array_equal, found[1], expected)
  assert not np.array_equal(found[0].logp, expected.logp)
  assert len(converted) == 2 and found[1].tokens.shape == (4, 6)


def test_logits_of_the_first_token_are_those_of_the_prefill(policy, mesh, requests):
  engine = CompiledEngine(policy.model, policy.forbidden_tokens, mesh, lambda weights: weights)
  engine.publish(policy.params)
  found = engine.first_token_logits(requests)
  expected, _ = jax.jit(qwen3_vl.prefill, static_argnums=1)(
    policy.params, policy.model, requests.prompts
  )
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_programs_run_under_the_mesh_of_the_engine(policy, requests, sampling, monkeypatch):
  """A kernel that is partitioned by hand reads the mesh that is set while a program is traced."""
  mesh = sharding.make_mesh({"data": 2}, jax.devices()[:2])
  seen = []

  def remember(result):
    def program(*arguments, **settings):
      seen.append(jax.sharding.get_abstract_mesh().shape)
      return result

    return program

  nothing = Completions(*(np.zeros((4, 6), dtype) for dtype in (np.int32, bool, np.float32)))
  monkeypatch.setattr(engine_module, "generate", remember(nothing))
  monkeypatch.setattr(engine_module, "first_token_logits", remember(np.zeros((2, 9), np.float32)))
  engine = CompiledEngine(policy.model, policy.forbidden_tokens, mesh, lambda weights: weights)
  engine.publish(policy.params)
  engine.generate(requests, jax.random.key(0), sampling)
  engine.first_token_logits(requests)
  assert seen == [mesh.shape] * 2


def test_without_weights_it_says_what_to_do(policy, mesh, requests, sampling):
  engine = CompiledEngine(policy.model, policy.forbidden_tokens, mesh, lambda weights: weights)
  with pytest.raises(RuntimeError, match="call publish first"):
    engine.generate(requests, jax.random.key(0), sampling)
  engine.publish(policy.params)
  engine.release()
  with pytest.raises(RuntimeError, match="call publish first"):
    engine.generate(requests, jax.random.key(0), sampling)
