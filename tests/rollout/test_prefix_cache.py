"""Prompts that continue a cached prefix: equal to whole prompts, computed once, forgotten with the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import inference_engine
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  encode_question,
  longest_prefix,
  make_requests,
  prompt_format,
)
from spatial_vlm.rollout import prefix_cache
from spatial_vlm.rollout.prefix_cache import PrefixCache

LINES = ("Use behavior_left_of: yes when X x < Y x", "Use it.", "")
"""System turns of two lengths, and none."""
SHAPES = [(160, 256)]
PREFIX = 48


@pytest.fixture(scope="module")
def policy(nano):
  """Weights that are large enough for every part of the computation to change logits."""
  loaded = load_policy(str(nano))
  return loaded._replace(params=jax.tree.map(lambda x: jnp.asarray(x) * 1.5, loaded.params))


@pytest.fixture(scope="module")
def asked(policy):
  """Eight questions about images of four sizes, with two system turns and without."""
  source, texture = SceneSource("train", 0, 16), np.random.default_rng(0)
  rows = []
  for number in range(8):
    caption = source[2 * number].record.caption
    image = texture.integers(0, 256, (64, (64, 96, 128, 80)[number % 4], 3), np.uint8)
    system = LINES[number % 3]
    encoded = encode_question(policy.processor, image, f"{caption} True?", system)
    rows.append(AskedQuestion(caption, image, encoded, system))
  assert len({row.encoded.prefix for row in rows}) == 3
  assert len({row.encoded.patches for row in rows}) > 2
  return rows


def asking(policy, mesh, asked, prefix_tokens, slots=8):
  """An engine and the requests of these questions, with prefixes of up to so many tokens apart."""
  weights = jax.device_put(policy.params, sharding.param_shardings(mesh, policy.params))
  cache = PrefixCache(policy.model, mesh, slots, PREFIX)
  engine = inference_engine(policy._replace(params=weights), mesh, cache)
  format = prompt_format(SHAPES, "float32", prefix_tokens)
  ids, labels = range(len(asked)), [-1] * len(asked)
  return engine, make_requests(policy, mesh, asked, ids, labels, format)


MESHES = {"one device": ({}, 1), "rows and heads": ({"data": 2, "fsdp": 1, "tensor": 2}, 4)}


@pytest.fixture(scope="module", params=MESHES)
def mesh(request):
  shape, devices = MESHES[request.param]
  return sharding.make_mesh(shape, jax.devices()[:devices])


@pytest.fixture(scope="module")
def single():
  return sharding.make_mesh({}, jax.devices()[:1])


def test_logits_and_log_probabilities_equal_those_of_whole_prompts(policy, mesh, asked):
  sampling = policy.sampling(6, temperature=1.0, group_size=2)
  logits, completions = [], []
  for prefix_tokens in (0, PREFIX):
    engine, requests = asking(policy, mesh, asked, prefix_tokens, slots=2)  # no empty slot
    assert any(requests.prefixes) == bool(prefix_tokens)
    logits.append(np.asarray(engine.first_token_logits(requests)))
    completions.append(jax.device_get(engine.generate(requests, jax.random.key(1), sampling)))
  assert logits[0].std() > 0.3
  np.testing.assert_allclose(logits[1], logits[0], atol=1e-5)
  whole, cached = completions
  np.testing.assert_array_equal(cached.tokens, whole.tokens)
  np.testing.assert_array_equal(cached.mask, whole.mask)
  np.testing.assert_allclose(cached.logp, whole.logp, atol=1e-5)


def test_greedy_tokens_are_those_of_whole_prompts(policy, single, asked):
  found = []
  for prefix_tokens in (0, PREFIX):
    engine, requests = asking(policy, single, asked, prefix_tokens)
    found.append(engine.generate(requests, jax.random.key(0), policy.sampling(12)).tokens)
  np.testing.assert_array_equal(*found)


def test_prompts_hold_the_rest_and_their_positions_go_on(policy, mesh, asked):
  _, requests = asking(policy, mesh, asked, PREFIX)
  for row, (question, prefix) in enumerate(zip(asked, requests.prefixes, strict=True)):
    encoded = question.encoded
    rest = np.asarray(requests.prompts.tokens)[row][np.asarray(requests.prompts.segments)[row] > 0]
    np.testing.assert_array_equal([*prefix, *rest], encoded.tokens)
    assert bool(prefix) == bool(question.system)


def test_a_text_is_computed_once_for_all_batches(policy, single, asked, monkeypatch):
  filled = []
  original = prefix_cache.fill
  monkeypatch.setattr(
    prefix_cache,
    "fill",
    lambda w, t, tokens, valid, slots, **k: (
      filled.append(slots) or original(w, t, tokens, valid, slots, **k)
    ),
  )
  engine, requests = asking(policy, single, asked, PREFIX)
  for _ in range(2):
    engine.first_token_logits(requests)
  assert [sorted(s)[:2] for s in filled] == [[0, 1]] and len(filled[0]) == 8
  engine.publish(jax.tree.map(lambda x: 2 * x, policy.params))
  engine.first_token_logits(requests)
  assert len(filled) == 2


def test_new_weights_forget_the_old_keys_and_values(policy, single, asked):
  engine, requests = asking(policy, single, asked, PREFIX)
  engine.first_token_logits(requests)
  other = jax.tree.map(lambda x: 0.7 * x, policy.params)
  engine.publish(other)
  whole, prompts = asking(policy._replace(params=other), single, asked, 0)
  found = engine.first_token_logits(requests)
  np.testing.assert_allclose(found, whole.first_token_logits(prompts), atol=1e-5)


def test_a_text_that_could_not_be_computed_is_not_taken_for_cached(
  policy, single, asked, monkeypatch
):
  engine, requests = asking(policy, single, asked, PREFIX)

  def out_of_memory(*args, **settings):
    raise MemoryError

  with monkeypatch.context() as broken, pytest.raises(MemoryError):
    broken.setattr(prefix_cache, "fill", out_of_memory)
    engine.first_token_logits(requests)
  fresh, _ = asking(policy, single, asked, PREFIX)
  np.testing.assert_array_equal(
    engine.first_token_logits(requests), fresh.first_token_logits(requests)
  )


def test_the_text_that_was_asked_for_longest_ago_makes_room(policy, single, asked):
  """Three texts take turns in two slots; each answer is right."""
  lines = [LINES[0], LINES[1], "Use X or Y."]
  image = asked[0].image
  encoded = [encode_question(policy.processor, image, "True?", line) for line in lines]
  rows = [AskedQuestion("", image, row) for row in encoded]
  engine, _ = asking(policy, single, rows[:1], PREFIX, slots=2)
  for pair in ([0, 1], [0, 2], [0, 1], [2, 1], [0, 2]):
    batch = [rows[i] for i in pair]
    requests, whole = (asking(policy, single, batch, n)[1] for n in (PREFIX, 0))
    found = engine.first_token_logits(requests)
    np.testing.assert_allclose(found, engine.first_token_logits(whole), atol=1e-5)
  with pytest.raises(ValueError, match="3 prefixes of up to .* do not fit in 2 slots of 48"):
    engine.first_token_logits(asking(policy, single, rows, PREFIX)[1])


def test_without_prefixes_the_program_is_that_of_whole_prompts(policy, single, asked, monkeypatch):
  """Rows without a system turn never meet the cache, so that their results are equal bit for bit."""
  plain = [row for row in asked if not row.system]
  monkeypatch.setattr(PrefixCache, "prefixes", None)
  found = []
  for prefix_tokens in (0, PREFIX):
    engine, requests = asking(policy, single, plain, prefix_tokens)
    found.append(np.asarray(engine.first_token_logits(requests)))
  np.testing.assert_array_equal(*found)


def test_an_engine_without_a_cache_refuses_prefixes(policy, single, asked):
  _, requests = asking(policy, single, asked, PREFIX)
  with pytest.raises(ValueError, match="no prefix_cache; give it one"):
    inference_engine(policy, single).first_token_logits(requests)


def test_a_prefix_that_is_too_long_stays_in_its_prompt(policy, single, asked):
  longest = longest_prefix(policy.processor, LINES)
  assert longest == max(row.encoded.prefix for row in asked)
  _, requests = asking(policy, single, asked, longest - 1)
  assert {len(prefix) for prefix in requests.prefixes} == {0, asked[1].encoded.prefix}
