"""Continuous batching: every answer is that of the request alone, whatever runs beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.processor.chat import Size, collate_prompts
from spatial_vlm.rollout.sampler import SamplingSettings, generate
from spatial_vlm.rollout.slot_engine import SlotEngine, SlotRequest, SlotSettings

TOKENS = 20


@pytest.fixture(scope="module")
def policy(nano):
  """Weights with which answers end at different lengths."""
  loaded = load_policy(str(nano))
  table = np.array(loaded.params["text"]["embed"]["embedding"])
  table[loaded.special.eos] *= 6
  text = {**loaded.params["text"], "embed": {"embedding": jnp.asarray(table * 2)}}
  return loaded._replace(params={**loaded.params, "text": text})


@pytest.fixture(scope="module")
def rows(policy):
  source = SceneSource("train", 0, 16)
  texts = ["?", "List the objects.", *(source[2 * i].record.caption for i in range(5)), "Why so?"]
  return [encode_question(policy.processor, source[i].image, text) for i, text in enumerate(texts)]


def make_engine(policy, mesh=None, **changes):
  settings = dict(
    prompt_slots=3,
    max_new_tokens=TOKENS,
    sizes=(Size(64, 64),),
    end_tokens=(policy.special.eos,),
    prefill_prompts=(2,),
    decode_tokens=4,
  )
  mesh = mesh or sharding.make_mesh({}, jax.devices()[:1])
  engine = SlotEngine(
    policy.processor, policy.forbidden_tokens, mesh, SlotSettings(**settings | changes)
  )
  engine.publish(jax.device_put(policy.params, sharding.param_shardings(mesh, policy.params)))
  return engine


def request(rows, number, **changes):
  fields = dict(
    id=number, prompt=rows[number % len(rows)], max_new_tokens=TOKENS, temperature=1.0, seed=5
  )
  return SlotRequest(**fields | changes)


def drive(engine, requests):
  """Returns (id, sample) -> (tokens, logp, finished)."""
  for one in requests:
    engine.submit(one)
  found = {}
  while engine.busy:
    for p in engine.step():
      tokens, logp, finished = found.get((p.id, p.sample), ([], [], None))
      assert finished is None
      found[p.id, p.sample] = (tokens + p.tokens, logp + p.logp, p.finished)
  assert all(finished for _, _, finished in found.values())
  return found


def assert_equal(found, expected):
  assert found.keys() == expected.keys()
  for key, (tokens, logp, finished) in expected.items():
    assert found[key][0] == tokens and found[key][2] == finished
    np.testing.assert_allclose(found[key][1], logp, atol=1e-5)


@pytest.fixture(scope="module")
def together(policy, rows):
  return drive(make_engine(policy), [request(rows, i, samples=2) for i in range(8)])


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_answers_are_those_of_the_simple_loop(policy, rows, temperature):
  engine = make_engine(policy)
  found = drive(engine, [request(rows, i, samples=2, temperature=temperature) for i in range(8)])
  prompts = collate_prompts(rows, policy.processor, range(8), [-1] * 8, 64, 64)
  sampling = SamplingSettings(
    2, TOKENS, temperature=temperature, eos=policy.special.eos, pad=policy.special.pad
  )
  expected = generate(
    policy.params,
    prompts,
    jax.random.key(5),
    policy.forbidden_tokens,
    model=policy.model,
    sampling=sampling,
  )
  lengths = np.sum(expected.mask, axis=1)
  assert len(set(lengths.tolist())) > 3 and lengths.max() == TOKENS
  for row in range(16):
    tokens, logp, finished = found[row // 2, row % 2]
    assert tokens == expected.tokens[row, : lengths[row]].tolist()
    np.testing.assert_allclose(logp, expected.logp[row, : lengths[row]], atol=1e-5)
    assert finished == ("stop" if tokens[-1] == policy.special.eos else "length")


@pytest.mark.parametrize(
  "changes",
  [
    dict(prompt_slots=7, prefill_prompts=(1, 4)),
    dict(samples_per_slot=2, decode_tokens=3),
    dict(decode_tokens=TOKENS),
  ],
)
def test_answers_do_not_depend_on_order_or_slots(policy, rows, together, changes):
  order = [5, 2, 7, 0, 3, 1, 6, 4]
  found = drive(make_engine(policy, **changes), [request(rows, i, samples=2) for i in order])
  assert_equal(found, together)


def test_an_answer_alone_equals_the_one_among_others(policy, rows, together):
  alone = drive(make_engine(policy), [request(rows, 4, samples=2)])
  assert_equal(alone, {key: value for key, value in together.items() if key[0] == 4})
