"""The engine that a training run samples with."""

import jax
import numpy as np
from rl_settings import rl_settings

from spatial_vlm import sharding
from spatial_vlm.inference.generation import inference_engine, slot_settings
from spatial_vlm.inference.policy import (
  AskedQuestion,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.processor.chat import collate_prompts
from spatial_vlm.rollout.prefix_cache import PrefixCache
from spatial_vlm.train.policy_optimization import Constants, Minibatch, score_minibatch
from spatial_vlm.types import Rollout

TOKENS, GROUP = 8, 2
IMAGES = [[(32, 48), (48, 16)], [(16, 64)], [(16, 16), (32, 16), (16, 48)], []]
"""Heights and widths of the images of each prompt."""


def rollout_of(completions):
  rows = (len(IMAGES), GROUP, TOKENS)
  nothing = np.zeros(rows[:2], np.int32)
  return Rollout(
    ids=nothing[:, 0],
    label=nothing[:, 0],
    tokens=completions.tokens.reshape(rows),
    mask=completions.mask.reshape(rows),
    logp=completions.logp.reshape(rows),
    verdict=nothing,
    correct=nothing > 0,
    length_tokens=nothing,
    advantage=nothing.astype(np.float32),
  )


def test_slots_sample_with_the_log_probabilities_of_the_trainer(policy):
  """Of prompts with several images, none of them square, padded, with and without a cached prefix."""
  rng, asked = np.random.default_rng(0), []
  for number, sizes in enumerate(IMAGES):
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    system = "Use behavior_left_of." if number % 2 == 0 else ""
    encoded = encode_question(policy.processor, images, "Why " * number + "?", system)
    asked.append(AskedQuestion("?", None, encoded, system))
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  format, ids = prompt_format([(160, 320)], "float32", 32), range(len(asked))
  slots = slot_settings(format, mesh, 2, TOKENS, policy.special.eos)
  engine = inference_engine(policy, mesh, PrefixCache(policy.model, mesh, 4, 32), slots)
  requests = make_requests(policy, mesh, asked, ids, [0] * len(asked), format)
  assert [len(prefix) > 0 for prefix in requests.prefixes] == [True, False, True, False]
  sampling = policy.sampling(TOKENS, temperature=0.7, group_size=GROUP)
  completions = jax.device_get(engine.generate(requests, jax.random.key(3), sampling))
  rows = [question.encoded for question in asked]
  prompts = collate_prompts(rows, policy.processor, ids, [0] * len(rows), 176, 320)
  settings = rl_settings(
    policy.special,
    groups_per_batch=len(rows),
    group_size=GROUP,
    rollout_batch_size=len(rows),
    max_rollout_rounds=1,
    rewards=(("accuracy", 1.0),),
    max_new_tokens=TOKENS,
    overlong_cache_tokens=2,
  )
  logp = score_minibatch(
    policy.params,
    Minibatch(prompts, rollout_of(completions)),
    Constants(policy.forbidden_tokens),
    model=policy.model,
    settings=settings,
  )
  assert completions.mask.sum() > len(rows) * GROUP * 4
  mask = completions.mask
  logp = np.asarray(logp).reshape(completions.logp.shape)
  np.testing.assert_allclose(completions.logp[mask], logp[mask], atol=1e-4)
