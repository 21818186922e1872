"""Sampling: equality with whole forward passes, and what a sampler must never do."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import process_rows, sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import encode_question
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.model import qwen3_vl
from spatial_vlm.objectives.token_logprobs import ban
from spatial_vlm.processor.chat import collate_prompts
from spatial_vlm.rollout.sampler import (
  STAGES,
  SamplingSettings,
  draw_tokens,
  generate,
  sample_token,
  stages,
)
from spatial_vlm.types import Batch

TOKENS = 16


@pytest.fixture(scope="module")
def policy(nano):
  return load_policy(str(nano))


@pytest.fixture(scope="module")
def prompts(policy):
  """Four questions of different lengths, padded on the left; their numbers have gaps."""
  source = SceneSource("train", 0, 8)
  texts = [
    "?",
    "List the objects.",
    source[4].record.caption,
    f"{source[6].record.caption} True? Why so?",
  ]
  rows = [
    encode_question(policy.processor, source[2 * i].image, text) for i, text in enumerate(texts)
  ]
  assert len({len(row.tokens) for row in rows}) == 4
  return collate_prompts(rows, policy.processor, [3, 11, 5, 400], [1, 0, 1, 0], 64, 64)


def answer(
  policy,
  prompts,
  params=None,
  *,
  group_size=1,
  temperature=1.0,
  seed=0,
  forbidden_tokens=None,
  model=None,
):
  completions = generate(
    policy.params if params is None else params,
    prompts,
    jax.random.key(seed),
    policy.forbidden_tokens if forbidden_tokens is None else forbidden_tokens,
    model=model or policy.model,
    sampling=SamplingSettings(
      group_size=group_size,
      max_new_tokens=TOKENS,
      temperature=temperature,
      eos=policy.special.eos,
      pad=policy.special.pad,
    ),
  )
  return jax.device_get(completions)


def rows_of(prompts, numbers):
  return jax.tree.map(lambda x: x[np.array(numbers)], prompts)


@pytest.fixture(scope="module")
def outspoken(policy):
  """Parameters whose unembedding is apart, so that a test can make tokens likely: (model, params)."""
  model = dataclasses.replace(policy.model, tie_word_embeddings=False)
  table = policy.params["text"]["embed"]["embedding"]
  return model, {**policy.params, "head": {"embedding": table * 3}}


def loud(outspoken, ids, strength=30.0):
  """Opposite directions for the first and the second half of `ids`: one half always gets all the probability."""
  model, params = outspoken
  table = np.array(params["head"]["embedding"])
  direction = np.random.default_rng(0).normal(size=table.shape[1]).astype(np.float32)
  half = len(ids) // 2
  table[ids[:half]], table[ids[half:]] = strength * direction, -strength * direction
  return model, {**params, "head": {"embedding": table}}


@pytest.fixture(scope="module")
def ending(policy, outspoken):
  """(model, params) that end a turn at some tokens and not at others."""
  model, params = outspoken
  table = np.array(params["head"]["embedding"])
  table[policy.special.eos] *= 12
  return model, {**params, "head": {"embedding": table}}


def test_greedy_is_the_argmax_of_whole_forward_passes(policy, prompts):
  completions = answer(policy, prompts, temperature=0.0)
  length = prompts.tokens.shape[1]
  start = np.where(prompts.segments[..., None] > 0, prompts.positions, 0).max(axis=(1, 2)) + 1
  answer_positions = start[:, None] + np.arange(TOKENS)
  batch = Batch(
    tokens=np.concatenate([prompts.tokens, completions.tokens], axis=1),
    segments=np.concatenate([prompts.segments, completions.mask.astype(np.int32)], axis=1),
    targets=np.zeros((4, length + TOKENS), bool),
    positions=np.concatenate(
      [prompts.positions, np.repeat(answer_positions[..., None], 3, axis=-1)], axis=1
    ),
    vision=prompts.vision,
  )
  forward = jax.jit(qwen3_vl.forward, static_argnums=1)
  for t in range(TOKENS):
    seen = np.arange(length + TOKENS) < length + t  # future tokens are masked
    hidden = forward(policy.params, policy.model, batch.replace(segments=batch.segments * seen))
    scores = ban(
      qwen3_vl.logits(policy.params, policy.model, hidden[:, length - 1 + t]),
      policy.forbidden_tokens,
    )
    real = completions.mask[:, t]
    assert real.any()
    np.testing.assert_array_equal(completions.tokens[real, t], jnp.argmax(scores, axis=-1)[real])
    expected = jnp.max(jax.nn.log_softmax(scores), axis=-1)
    np.testing.assert_allclose(completions.logp[real, t], expected[real], atol=1e-5)


def test_an_answer_does_not_depend_on_the_other_rows(policy, prompts):
  whole = answer(policy, prompts, group_size=3)
  order = [2, 0]
  part = answer(policy, rows_of(prompts, order), group_size=3)
  for name in ("tokens", "mask"):
    expected = getattr(whole, name).reshape(4, 3, TOKENS)[order]
    np.testing.assert_array_equal(getattr(part, name).reshape(2, 3, TOKENS), expected)
  np.testing.assert_allclose(
    part.logp, whole.logp.reshape(4, 3, TOKENS)[order].reshape(6, TOKENS), atol=1e-5
  )


def test_over_a_mesh_the_only_collective_is_the_end_of_decoding(policy, prompts):
  """A prompt's cache is on the devices that sample its answers."""
  mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})
  over_mesh = process_rows.make_global_batch(mesh, rows_of(prompts, [0, 1, 2, 3] * 2))
  params = jax.device_put(policy.params, sharding.replicated(mesh))
  sampling = SamplingSettings(
    2, TOKENS, temperature=1.0, eos=policy.special.eos, pad=policy.special.pad
  )
  compiled = generate.lower(
    params,
    over_mesh,
    jax.random.key(0),
    policy.forbidden_tokens,
    model=policy.model,
    sampling=sampling,
  ).compile()
  exchanged = re.findall(r"= (\S+) (?:all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text())
  assert exchanged == ["pred[]"] * STAGES


def test_samples_differ_and_seeds_and_numbers_decide(policy, prompts):
  first = answer(policy, prompts, group_size=4).tokens
  assert len({row.tobytes() for row in first}) == 16
  np.testing.assert_array_equal(answer(policy, prompts, group_size=4).tokens, first)
  assert not np.array_equal(answer(policy, prompts, group_size=4, seed=1).tokens, first)
  # Sample i of a prompt stays the same when more are drawn.
  fewer = answer(policy, prompts, group_size=2).tokens.reshape(4, 2, TOKENS)
  np.testing.assert_array_equal(fewer, first.reshape(4, 4, TOKENS)[:, :2])
  renumbered = prompts.replace(ids=np.array([3, 12, 5, 400], np.int32))
  other = answer(policy, renumbered, group_size=4).tokens.reshape(4, 4, TOKENS)
  changed = (other != first.reshape(4, 4, TOKENS)).any(axis=(1, 2))
  assert changed.tolist() == [False, True, False, False]


def test_without_temperature_nothing_is_drawn(policy, prompts):
  first = answer(policy, prompts, group_size=3, temperature=0.0, seed=0)
  second = answer(policy, prompts, group_size=3, temperature=0.0, seed=9)
  np.testing.assert_array_equal(first.tokens, second.tokens)
  rows = first.tokens.reshape(4, 3, TOKENS)
  np.testing.assert_array_equal(rows, np.repeat(rows[:, :1], 3, axis=1))
  assert np.all(first.logp[first.mask] < 0)


def test_after_the_end_of_turn_there_is_only_padding(policy, prompts, ending):
  model, params = ending
  found = answer(policy, prompts, params, group_size=32, model=model)
  lengths = found.mask.sum(axis=1)
  ended = (found.tokens == policy.special.eos).any(axis=1)
  assert 0 < ended.sum() < len(ended) and len(set(lengths)) > 3
  for tokens, mask, logp, length, has_end in zip(*found, lengths, ended, strict=True):
    assert mask[:length].all() and not mask[length:].any()
    assert (tokens[length:] == policy.special.pad).all() and (logp[length:] == 0).all()
    assert (logp[:length] <= 0).all() and not np.isin(
      tokens[: length - 1], policy.special.eos
    ).any()
    assert tokens[length - 1] == policy.special.eos if has_end else length == TOKENS


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_forbidden_tokens_are_never_sampled_even_if_likely(policy, prompts, outspoken, temperature):
  forbidden = np.array(policy.special.never_sampled)
  special = policy.special
  assert {special.pad, special.image, special.video, special.vision_start, special.im_start} <= {
    *forbidden
  }
  assert special.eos not in forbidden
  model, params = loud(outspoken, forbidden)
  ask = functools.partial(
    answer, policy, prompts, params, group_size=64, temperature=temperature, model=model
  )
  unguarded = ask(forbidden_tokens=np.zeros_like(policy.forbidden_tokens))
  assert np.isin(unguarded.tokens[unguarded.mask], forbidden).mean() > 0.8
  guarded = ask()
  assert guarded.mask.sum() > 2000
  assert not np.isin(guarded.tokens[guarded.mask], forbidden).any()
  assert np.isfinite(guarded.logp).all()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_from_the_softmax_at_the_temperature(temperature):
  logits = np.array([2.0, 0.0, -np.inf, 1.0, -1.0], np.float32)
  rows = 40_000
  keys = jax.random.split(jax.random.key(0), rows)
  drawn, logp = sample_token(jnp.tile(logits, (rows, 1)), keys, jnp.int32(7), temperature)
  with np.errstate(divide="ignore"):
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    expected_logp = np.log(expected)
  shares = np.bincount(drawn, minlength=5) / rows
  assert shares[2] == 0
  np.testing.assert_allclose(shares, expected, atol=4 * 0.5 / rows**0.5)
  np.testing.assert_allclose(logp, expected_logp[drawn], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_likely_and_unlikely_tokens_are_drawn_as_often_as_the_softmax_says(dtype):
  """χ² of 12,800 draws over groups of tokens; 1/90 of the probability is in tokens below 2⁻¹²."""
  V, rows, rounds = 2**13, 256, 50
  logits = np.random.default_rng(0).normal(size=V).astype(np.float32)
  logits[:64] += np.log(V) + np.arange(64) / 32 - 0.9
  logits[[70, -1]] = -np.inf
  logp = jax.nn.log_softmax(jnp.asarray(logits, dtype).astype(jnp.float32))
  p = np.exp(np.asarray(logp, np.float64))
  of_rows = jnp.tile(logp, (rows, 1))
  keys = jax.random.split(jax.random.key(1), (rounds, rows))
  draws = np.asarray(jax.lax.map(lambda keys: draw_tokens(of_rows, keys), keys)).ravel()
  assert not np.isin(draws, [70, V - 1]).any()
  group = np.concatenate([np.arange(64), 64 + np.arange(V - 64) * 4 // (V - 64)])
  expected = len(draws) * np.bincount(group, p)
  observed = np.bincount(group[draws], minlength=68)
  assert 0.01 < p[64:].sum() < 0.03 and p[64:].max() < 2**-12 and expected.min() > 4
  assert np.sum((observed - expected) ** 2 / expected) < 107  # p = 0.001 at 67 degrees of freedom


def test_each_token_of_an_answer_has_its_own_random_key():
  keys = jax.random.split(jax.random.key(0), 64)
  flat = jnp.zeros((64, 1000))
  first, second = (sample_token(flat, keys, jnp.int32(t), 1.0)[0] for t in (0, 1))
  assert (first != second).mean() > 0.95


@pytest.mark.parametrize("max_new_tokens", [1, 3, 4, 10, 1024])
def test_stages_have_a_slot_for_every_token(max_new_tokens):
  slots = stages(max_new_tokens)
  assert sum(slots) == max_new_tokens and len(slots) == min(STAGES, max_new_tokens)
  assert max(slots) - min(slots) <= 1
