"""Batches in slots: equal to answers that start together, over meshes, with cached prefixes, from several threads."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import inference_engine, slot_settings
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.rollout.prefix_cache import PrefixCache

LINES = ("Use behavior_left_of: yes when X x < Y x", "Use it.", "")
PREFIX, TOKENS = 48, 10


@pytest.fixture(scope="module")
def policy(nano):
  loaded = load_policy(str(nano))
  table = np.array(loaded.params["text"]["embed"]["embedding"])
  table[loaded.special.eos] *= 6
  text = {**loaded.params["text"], "embed": {"embedding": table * 2}}
  return loaded._replace(params={**loaded.params, "text": text})


@pytest.fixture(scope="module")
def asked(policy):
  source = SceneSource("train", 0, 16)
  rows = []
  for number in range(8):
    caption, system = source[2 * number].record.caption, LINES[number % 3]
    encoded = encode_question(policy.processor, source[number].image, f"{caption}?", system)
    rows.append(AskedQuestion(caption, None, encoded, system))
  return rows


def asking(policy, mesh, asked, in_slots, ids=range(8)):
  """Returns an engine with or without slots, and the requests of the questions."""
  weights = jax.device_put(policy.params, sharding.param_shardings(mesh, policy.params))
  cache = PrefixCache(policy.model, mesh, 8, PREFIX)
  format = prompt_format([(96, 64)], "float32", PREFIX)
  slots = None
  if in_slots:
    slots = slot_settings(policy, format, 4, TOKENS)
    slots = dataclasses.replace(slots, decode_tokens=3, prefill_prompts=(2,))
  engine = inference_engine(policy._replace(params=weights), mesh, cache, slots)
  return engine, make_requests(policy, mesh, asked, ids, [-1] * len(asked), format)


MESHES = {"one device": ({}, 1), "rows and heads": ({"data": 2, "fsdp": 1, "tensor": 2}, 4)}


@pytest.fixture(scope="module")
def single():
  return sharding.make_mesh({}, jax.devices()[:1])


@pytest.fixture(scope="module")
def together(policy, asked, single):
  engine, requests = asking(policy, single, asked, in_slots=False)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  return jax.device_get(engine.generate(requests, jax.random.key(3), sampling))


@pytest.mark.parametrize("mesh", MESHES)
def test_answers_equal_those_that_start_together(policy, asked, together, mesh):
  shape, devices = MESHES[mesh]
  mesh = sharding.make_mesh(shape, jax.devices()[:devices])
  engine, requests = asking(policy, mesh, asked, in_slots=True)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  found = jax.device_get(engine.generate(requests, jax.random.key(3), sampling))
  lengths = together.mask.sum(axis=1)
  assert len(set(lengths.tolist())) > 3
  np.testing.assert_array_equal(found.tokens, together.tokens)
  np.testing.assert_array_equal(found.mask, together.mask)
  np.testing.assert_allclose(found.logp, together.logp, atol=1e-4)


def test_threads_share_the_slots(policy, asked, single, together):
  engine, _ = asking(policy, single, asked, in_slots=True)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  format = prompt_format([(96, 64)], "float32", PREFIX)

  def answer(numbers):
    rows, labels = [asked[n] for n in numbers], [-1] * len(numbers)
    requests = make_requests(policy, single, rows, numbers, labels, format)
    return jax.device_get(engine.generate(requests, jax.random.key(3), sampling))

  parts = [(0, 1, 2), (3, 4), (5, 6, 7)]
  with ThreadPoolExecutor(3) as pool:
    found = list(pool.map(answer, parts))
  tokens = np.concatenate([part.tokens for part in found])
  np.testing.assert_array_equal(tokens, together.tokens)


def test_rows_that_fill_a_batch_are_not_asked(policy, asked, single, together):
  ids = [0, 1, 2, 3, -1, -1, -1, -1]
  engine, requests = asking(policy, single, asked, True, ids)
  sampling = policy.sampling(TOKENS, temperature=1.0, group_size=2)
  found = jax.device_get(engine.generate(requests, jax.random.key(3), sampling))
  np.testing.assert_array_equal(found.tokens[:8], together.tokens[:8])
  assert not found.mask[8:].any() and (found.tokens[8:] == policy.special.pad).all()
