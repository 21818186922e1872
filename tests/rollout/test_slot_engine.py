"""Continuous batching: every answer equals that of its request alone."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spatial_vlm import sharding
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.processor.chat import Size, collate_prompts
from spatial_vlm.rollout.sampler import SamplingSettings, generate, likeliest_tokens, truncate
from spatial_vlm.rollout.slot_engine import SlotEngine
from spatial_vlm.rollout.slot_requests import SlotRequest, SlotSettings
from spatial_vlm.rollout.slots import decode_slots

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


@pytest.fixture(scope="module")
def engine(policy):
  """An engine that tests leave empty."""
  return make_engine(policy)


def test_settings_of_other_requests_change_nothing(rows, together, engine):
  """Neither an answer nor the program depends on the settings of the other rows."""
  programs = decode_slots._cache_size()
  others = [
    request(rows, 20, temperature=0.0),
    request(rows, 21, top_k=3, temperature=0.5),
    request(rows, 22, top_p=0.5, seed=9, max_new_tokens=7, stop=(9, 30)),
  ]
  mixed = [request(rows, i, samples=2) for i in (0, 3)] + others
  found = drive(engine, mixed)
  assert_equal(
    {key: value for key, value in found.items() if key[0] < 20},
    {key: value for key, value in together.items() if key[0] in (0, 3)},
  )
  assert len(found[22, 0][0]) <= 7
  assert decode_slots._cache_size() == programs


def test_a_request_may_have_its_own_end_tokens(rows, together, engine):
  tokens, logp, _ = max(together.values(), key=lambda answer: len(answer[0]))
  (id, sample) = next(key for key, value in together.items() if value[0] == tokens)
  stop = (tokens[4], tokens[6])
  end = min(tokens.index(token) for token in stop)
  found = drive(engine, [request(rows, id, samples=sample + 1, stop=stop)])[id, sample]
  assert found[0] == tokens[: end + 1] and found[2] == "stop"
  np.testing.assert_allclose(found[1], logp[: end + 1], atol=1e-5)


@pytest.mark.parametrize("cut", [dict(top_k=1), dict(top_p=1e-6)])
def test_the_likeliest_token_alone_is_the_greedy_answer(rows, engine, cut):
  greedy = drive(engine, [request(rows, 1, temperature=0.0)])
  found = drive(engine, [request(rows, 1, temperature=1.0, **cut)])
  assert found[1, 0][0] == greedy[1, 0][0]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
  p = np.array([[0.4, 0.1, 0.3, 0.2]] * 4, np.float32)
  top_p = jnp.array([1.0, 0.6, 0.75, 0.5])
  top_k = jnp.array([0, 0, 0, 2])
  kept = np.isfinite(truncate(jnp.log(p), top_p, top_k))
  assert kept.tolist() == [
    [True] * 4,
    [True, False, True, False],
    [True, False, True, True],
    [True, False, False, False],  # 0.4 of the 0.7 that two tokens have
  ]


def test_the_likeliest_tokens_are_those_of_the_rows_that_want_them():
  logits = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
  settings = SimpleNamespace(temperature=jnp.array([0.0, 0.5]))
  token, logp = likeliest_tokens(logits, settings, jnp.array([True, True]), 2)
  assert token.tolist() == [[1, 2], [0, 2]]
  squares = np.array([0.25, 0.09]) / 0.38  # temperature 0.5
  np.testing.assert_allclose(np.exp(logp), [[0.6, 0.3], squares], atol=1e-6)
  token, logp = likeliest_tokens(logits, settings, jnp.array([False, False]), 2)
  assert not token.any() and not logp.any()


def test_a_row_that_is_not_cut_keeps_its_unlikely_tokens():
  """The cumulative probability of many tokens rounds to 1 before the last one."""
  logits = np.random.default_rng(0).normal(size=(2, 50_000)).astype(np.float32) * 6
  kept = np.isfinite(truncate(jax.nn.log_softmax(logits), jnp.array([1.0, 0.9]), jnp.zeros(2, int)))
  assert kept[0].all() and not kept[1].all()


def test_after_a_failed_step_no_answer_comes_until_weights_are_published(policy, rows, monkeypatch):
  engine = make_engine(policy)
  weights = engine._weights
  with monkeypatch.context() as patch:
    patch.setattr(engine, "_arrivals", lambda *_: 1 / 0)
    engine.submit(request(rows, 1))
    with pytest.raises(ZeroDivisionError):
      engine.step()
  engine.submit(request(rows, 2))
  with pytest.raises(RuntimeError, match="an earlier step of the engine failed"):
    engine.step()
  engine.publish(weights)
  assert not engine.busy and engine.step() == []


def test_a_cancelled_request_leaves_its_slots_to_others(rows, together, engine):
  for i in (0, 1, 2):
    engine.submit(request(rows, i, max_new_tokens=TOKENS))
  engine.step()
  engine.cancel(1)
  engine.cancel(2)
  engine.submit(request(rows, 5))
  engine.cancel(77)  # unknown
  found = {}
  while engine.busy:
    for p in engine.step():
      found.setdefault(p.id, []).extend(p.tokens)
  assert found.keys() == {0, 5}
  assert found[5] == together[5, 0][0]
  assert together[0, 0][0][-len(found[0]) :] == found[0]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(max_new_tokens=TOKENS + 1), f"max_new_tokens 21; give 1 … {TOKENS}"),
    (dict(samples=4), "4 samples; give 1 … 3"),
    (dict(temperature=-1.0), "temperature -1.0"),
    (dict(top_p=0.0), "0 < top_p <= 1"),
    (dict(top_k=-1), "top_k -1"),
    (dict(stop=tuple(range(8))), "8 stop tokens; give at most 7"),
    (dict(prefix=(1, 2)), "has no prefix_cache; give it one"),
  ],
)
def test_what_cannot_be_sampled_is_refused(rows, engine, changes, message):
  with pytest.raises(ValueError, match=message):
    engine.submit(request(rows, 1, **changes))
  assert not engine.busy


def test_an_id_is_taken_until_its_answers_end(rows, engine):
  engine.submit(request(rows, 3))
  with pytest.raises(ValueError, match="request 3 is in the engine already"):
    engine.submit(request(rows, 3))
  engine.cancel(3)
  engine.submit(request(rows, 3))
  engine.cancel(3)
