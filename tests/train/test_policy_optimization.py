"""DAPO's rounds and updates, on handmade and sampled rollouts."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answer_rows import answers_to, whole_rows
from optimizer_settings import adamw_settings
from rl_settings import rl_settings

from spatial_vlm import metrics, process_rows, sharding
from spatial_vlm.answers import STATEMENT
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.generation import encode_question
from spatial_vlm.metrics import PhaseClock
from spatial_vlm.model import qwen3_vl
from spatial_vlm.optim.optimizers import make_optimizer
from spatial_vlm.parameters.partition import NOTHING
from spatial_vlm.processor.chat import collate_prompts
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import generate
from spatial_vlm.tasks import statements
from spatial_vlm.train import policy_optimization, rollout_buffer
from spatial_vlm.train.policy_optimization import Constants, Minibatch, MinibatchScores
from spatial_vlm.train.update import init_state as init_train_state

G, TOKENS = 4, 12

# eps: as in test_sft.
OPTIMIZER = make_optimizer(adamw_settings(learning_rate=3e-3, eps=1e-4))


@pytest.fixture(scope="module")
def settings(policy):
  return rl_settings(policy.special, group_size=G, max_new_tokens=TOKENS)


@pytest.fixture(scope="module")
def prompts(policy):
  """Eight prompts of different lengths."""
  source = SceneSource("train", 0, 16)
  texts = [
    statements.question(source[i].record.caption, ("chain", "direct")[i % 2]) for i in range(7)
  ] + ["Is it?"]
  rows = [encode_question(policy.processor, source[i].image, text) for i, text in enumerate(texts)]
  prompts = collate_prompts(rows, policy.processor, range(8), [1, 0] * 4, 64, 64)
  assert len(set((prompts.segments > 0).sum(axis=1))) > 2
  return prompts


@pytest.fixture(scope="module")
def sampled(policy, prompts, settings):
  """The prompts, each answered by G samples of the model."""
  automaton = compile_automaton(
    STATEMENT, token_bytes(policy.processor.tokenizer), policy.special.eos
  )
  rollout = sample_groups(policy, policy.params, prompts, jax.random.key(0), automaton, settings)
  return jax.device_get(rollout)


def sample_groups(policy, params, prompts, key, automaton, settings):
  """Groups with their verdicts, sampled by the compiled program."""
  completions = generate(
    params, prompts, key, policy.forbidden_tokens, model=policy.model, sampling=settings.sampling
  )
  return rollout_buffer.judge_groups(
    prompts, completions, automaton, group_size=settings.group_size
  )


def shortened(rollout, settings, seed):
  """The same answers, cut to lengths of their own and ended."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(2, TOKENS + 1, rollout.length_tokens.shape)
  lengths = np.minimum(
    lengths, rollout.length_tokens
  )  # after its end it is padding, which is forbidden
  places = np.arange(TOKENS)
  mask = places < lengths[..., None]
  tokens = np.where(mask, rollout.tokens, settings.pad)
  tokens = np.where(places == lengths[..., None] - 1, settings.eos, tokens)
  return rollout.replace(
    tokens=tokens.astype(np.int32), mask=mask, length_tokens=lengths.astype(np.int32)
  )


def judged(rollout, correct):
  """Verdicts that make exactly these answers right; every other wrong answer does not parse."""
  correct = np.array(correct, bool)
  label = rollout.label[:, None]
  wrong = np.where(np.arange(G) % 2, -1, 1 - label)
  verdict = np.where(correct, label, wrong).astype(np.int32)
  return rollout.replace(verdict=verdict, correct=correct)


def some_right(groups, seed=0):
  """Groups with 1 … G−1 right answers."""
  rng = np.random.default_rng(seed)
  return np.stack([rng.permutation(np.arange(G) < 1 + i % (G - 1)) for i in range(groups)])


@pytest.fixture(scope="module")
def mixed(sampled, settings):
  return judged(shortened(sampled, settings, 0), some_right(8))


def rows(rollout, numbers):
  return jax.tree.map(lambda x: x[np.array(numbers)], rollout)


def fresh(policy, settings):
  train = init_train_state(jax.tree.map(jnp.array, policy.params), OPTIMIZER)
  return rollout_buffer.init_state(train, settings)


def collected(policy, rollout, settings):
  return rollout_buffer.collect(fresh(policy, settings), rollout, settings=settings)


@pytest.fixture(scope="module")
def update(policy, prompts):
  """Updates a state on the prompts whose numbers its buffer keeps."""

  def updated(state, settings, reference=NOTHING, place=lambda rows: rows):
    result = policy_optimization.update_policy(
      state,
      lambda numbers: place(rows(prompts, numbers)),
      Constants(policy.forbidden_tokens, reference=reference),
      model=policy.model,
      optimizer=OPTIMIZER,
      settings=settings,
      clock=PhaseClock(),
    )
    return jax.device_get(result)

  return updated


def score(policy, params, prompts, rollout, settings):
  """Log-probabilities (B, G, T) of the answers."""
  minibatch, constants = Minibatch(prompts, rollout), Constants(policy.forbidden_tokens)
  return np.asarray(
    policy_optimization.score_minibatch(
      params, minibatch, constants, model=policy.model, settings=settings
    )
  )


def change(settings, **changes):
  return dataclasses.replace(settings, **changes)


def assert_close(found, expected, relative=1e-5):
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))

  def check(path, a, b):
    scale = max(float(np.abs(b).max()), 1e-2 * largest)
    np.testing.assert_allclose(
      a, b, rtol=0, atol=relative * scale, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(check, found, expected)


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_means_close(found, expected):
  found, expected = metrics.means(found), metrics.means(expected)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


# Rounds


def test_collect_keeps_mixed_groups_in_order_and_drops_the_surplus(policy, sampled, settings):
  settings = change(settings, groups_per_batch=5)
  none, every = np.zeros((1, G)), np.ones((1, G))
  some = some_right(8)
  first = judged(
    sampled, np.concatenate([none, some[1:2], every, some[3:4], none, none, some[6:7], every])
  )
  second = judged(sampled, np.concatenate([some[:1], every, some[2:8]]))
  second = second.replace(tokens=second.tokens + 1)
  state = fresh(policy, settings)
  state = jax.device_get(rollout_buffer.collect(state, first, settings=settings))
  assert (state.filled, state.cursor, state.rounds) == (3, 8, 1)
  assert_equal(rows(state.buffer, [0, 1, 2]), rows(first, [1, 3, 6]))
  assert not state.buffer.mask[3:].any() and not state.buffer.correct[3:].any()
  state = jax.device_get(
    rollout_buffer.collect(jax.tree.map(jnp.array, state), second, settings=settings)
  )
  assert (state.filled, state.cursor, state.rounds) == (5, 16, 2)
  assert_equal(rows(state.buffer, [0, 1, 2]), rows(first, [1, 3, 6]))
  assert_equal(rows(state.buffer, [3, 4]), rows(second, [0, 2]))
  # All samples of both rounds are counted, including dropped ones.
  right = np.concatenate([first.correct, second.correct])
  verdict = np.concatenate([first.verdict, second.verdict])
  expected = {
    "mixed_outcomes": (10, 16),
    "accuracy": (right.sum(), 64),
    "unparsed": ((verdict < 0).sum(), 64),
    "yes": ((verdict == 1).sum(), 64),
    "length_tokens": (2 * sampled.length_tokens.sum(), 64),
    "all_right": (3, 16),
    "all_wrong": (3, 16),
    "some_right": (13, 16),
  }
  assert {name: tuple(map(float, sums)) for name, sums in state.sampled.items()} == {
    f"sampled/{name}": tuple(map(float, sums)) for name, sums in expected.items()
  }


def test_collect_of_a_full_buffer_changes_only_the_counts(policy, mixed, settings):
  settings = change(settings, groups_per_batch=2)
  before = jax.device_get(collected(policy, mixed, settings))
  after = rollout_buffer.collect(
    jax.tree.map(jnp.array, before),
    rows(mixed, [7, 6, 5, 4, 3, 2, 1, 0]),
    settings=settings,
  )
  assert_equal(after.buffer, before.buffer)
  assert (before.filled, after.filled, after.cursor, after.rounds) == (2, 2, 16, 2)


def fake_loop(informative_per_round, steps, prompts=8, max_rollout_rounds=3, start=None):
  """The loop over states that only count; returns what happened."""
  events, sampled_at = [], []

  def sample(params, cursor):
    sampled_at.append(cursor)
    return next(informative_per_round)

  def collect(state, kept):
    assert sampled_at[-1] == state.cursor
    events.append(("round", int(state.cursor)))
    filled = min(state.filled + kept, prompts)
    counts = {
      **vars(state),
      "filled": filled,
      "cursor": state.cursor + 4,
      "rounds": state.rounds + 1,
    }
    return SimpleNamespace(**counts)

  def update_policy(state):
    events.append(("update", int(state.filled)))
    counts = {**vars(state), "filled": 0, "rounds": 0, "batches": state.batches + 1}
    return SimpleNamespace(**counts), {}

  state = start or SimpleNamespace(
    train=SimpleNamespace(params=None), cursor=0, filled=0, rounds=0, batches=0
  )
  settings = SimpleNamespace(groups_per_batch=prompts, max_rollout_rounds=max_rollout_rounds)
  yields = list(policy_optimization.rl_loop(state, sample, collect, update_policy, settings, steps))
  return events, yields


def test_rounds_go_on_until_the_batch_is_full_or_the_bound_is_met():
  events, yields = fake_loop(iter([5, 2, 1, 0, 0, 0, 8]), steps=3)
  assert events == [
    *[("round", 0), ("round", 4), ("round", 8), ("update", 8)],
    *[("round", 12), ("round", 16), ("round", 20), ("update", 0)],
    *[("round", 24), ("update", 8)],
  ]
  assert [sums is not None for _, sums in yields] == [event == "update" for event, _ in events]
  assert yields[-1][0].batches == 3


@pytest.mark.parametrize("stop", range(1, 8))
def test_the_loop_goes_on_from_any_state_that_it_yields(stop):
  kept = [5, 2, 1, 0, 0, 0, 8]
  events, yields = fake_loop(iter(kept), steps=3)
  state = yields[stop - 1][0]
  rounds = sum(event == "round" for event, _ in events[:stop])
  resumed, _ = fake_loop(iter(kept[rounds:]), steps=3, start=state)
  assert events[:stop] + resumed == events


# Updates


def test_the_trainer_scores_answers_as_the_sampler_did(policy, sampled, settings, prompts):
  """Two programs, left-padded prompts followed by answers: positions, cache and padding must agree."""
  model = dataclasses.replace(policy.model, tie_word_embeddings=False)
  table = np.array(policy.params["text"]["embed"]["embedding"]) * 2
  table[policy.special.eos] *= 6  # so that some answers end early
  params = {**policy.params, "head": {"embedding": table}}
  automaton = compile_automaton(
    STATEMENT, token_bytes(policy.processor.tokenizer), policy.special.eos
  )
  rollout = sample_groups(
    policy._replace(model=model), params, prompts, jax.random.key(3), automaton, settings
  )
  assert len(set(np.asarray(rollout.length_tokens).ravel())) > 3
  for chunk in (4096, 5):
    chunked = change(settings, chunk_tokens=chunk)
    logp = score(policy._replace(model=model), params, prompts, rollout, chunked)
    np.testing.assert_allclose(logp[rollout.mask], rollout.logp[rollout.mask], atol=1e-5)
  assert np.isneginf(
    logp[~rollout.mask]
  ).all()  # padding is forbidden: nothing may be computed from it
  np.testing.assert_array_equal(rollout.length_tokens, rollout.mask.sum(axis=-1))


def test_first_minibatch_has_a_ratio_of_exactly_one(policy, mixed, settings, update):
  state, sums = update(collected(policy, mixed, settings), settings)
  values = metrics.means(sums)
  assert values["ratio_max"] == 1.0 and values["ratio"] == 1.0
  assert values["kl_old"] == values["clip_low"] == values["clip_high"] == 0.0
  assert state.train.step == 1 and state.batches == 1
  assert (state.filled, state.rounds, state.cursor) == (0, 0, 8)
  assert all(total == 0 and count == 0 for total, count in state.sampled.values())


def test_the_sampler_and_the_trainer_are_compared(policy, sampled, settings, update):
  """The metric that warns when the two programs diverge: here by nothing, or by the added amount."""
  rollout = judged(sampled, some_right(8))
  _, sums = update(collected(policy, rollout, settings), settings)
  assert metrics.means(sums)["rollout_logprob_gap"] < 1e-5
  off = rollout.replace(logp=rollout.logp + 0.25)
  _, sums = update(collected(policy, off, settings), settings)
  np.testing.assert_allclose(metrics.means(sums)["rollout_logprob_gap"], 0.25, rtol=1e-3)


def test_the_first_minibatch_is_not_scored_before_its_update(
  policy, mixed, settings, update, monkeypatch
):
  scored = []
  score = policy_optimization.score_minibatch

  def remember(params, minibatch, constants, **static):
    scored.append(np.asarray(minibatch.rollout.tokens))
    return score(params, minibatch, constants, **static)

  monkeypatch.setattr(policy_optimization, "score_minibatch", remember)
  update(collected(policy, mixed, settings), change(settings, minibatches=2))
  [found] = scored
  np.testing.assert_array_equal(found, mixed.tokens[1::2])


@pytest.mark.parametrize("micro_batches", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_whole_rows(policy, mixed, settings, prompts, micro_batches):
  """Before any step −Σ Â · ∇ log π, here of rows that repeat the prompt; parts of two answers give the same."""
  settings = change(settings, micro_batches=micro_batches)
  reward = policy_optimization.shaped_reward(mixed, settings)
  whole = mixed.replace(advantage=policy_optimization.group_advantage(reward, mixed.correct))
  found, _ = jax.jit(
    functools.partial(policy_optimization.minibatch_gradient, model=policy.model, settings=settings)
  )(
    policy.params,
    Minibatch(prompts, whole),
    MinibatchScores(whole.logp, None, np.array(True)),
    Constants(policy.forbidden_tokens),
  )
  tokens, mask = (x.reshape(-1, TOKENS) for x in (mixed.tokens, mixed.mask))
  batch = whole_rows(prompts, answers_to(prompts, tokens, mask.astype(np.int32)))

  @jax.jit
  @jax.grad
  def expected(params):
    hidden = qwen3_vl.forward(params, policy.model, batch)[:, -TOKENS - 1 : -1]
    logits = qwen3_vl.logits(params, policy.model, hidden) / settings.temperature
    logp = jax.nn.log_softmax(jnp.where(policy.forbidden_tokens, -jnp.inf, logits))
    logp = jnp.take_along_axis(logp, tokens[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(mask, logp * whole.advantage.reshape(-1, 1), 0.0))

  assert_close(jax.device_get(found), jax.device_get(expected(policy.params)))


def test_later_minibatches_use_the_ratio_to_the_starting_policy(
  policy, mixed, settings, update, prompts
):
  settings = change(settings, minibatches=2)
  state, sums = update(collected(policy, mixed, settings), settings)
  assert metrics.means(sums)["ratio_max"] != 1.0 and state.train.step == 2
  one = jax.jit(
    functools.partial(
      policy_optimization.rl_step,
      constants=Constants(policy.forbidden_tokens),
      model=policy.model,
      optimizer=OPTIMIZER,
      settings=settings,
    )
  )
  reward = policy_optimization.shaped_reward(mixed, settings)
  whole = mixed.replace(advantage=policy_optimization.group_advantage(reward, mixed.correct))
  parts = [
    Minibatch(rows(prompts, numbers), rows(whole, numbers))
    for numbers in ([0, 2, 4, 6], [1, 3, 5, 7])
  ]
  old = [score(policy, policy.params, *part, settings) for part in parts]
  train = init_train_state(jax.tree.map(jnp.array, policy.params), OPTIMIZER)
  # The first mini-batch ignores the given old log-probabilities and uses its own; a later one does not.
  shifted = [
    one(train, parts[0], MinibatchScores(old[0] - 0.5, None, first))[1]["ratio_max"][0]
    for first in (True, False)
  ]
  assert shifted[0] == 1.0
  np.testing.assert_allclose(shifted[1], np.exp(0.5), rtol=1e-4)
  train, _ = one(train, parts[0], MinibatchScores(old[0], None, True))
  train, sums_second = one(train, parts[1], MinibatchScores(old[1], None, False))
  assert_close(state.train.params, train.params)
  np.testing.assert_allclose(
    sums["ratio_max"][0], max(1.0, float(sums_second["ratio_max"][0])), rtol=1e-5
  )


def test_objective_and_kept_statistics_by_numpy(policy, mixed, settings, update):
  """Before any step r is 1, so that the objective is the mean advantage over tokens."""
  _, sums = update(collected(policy, mixed, settings), settings)
  length = mixed.length_tokens.astype(float)
  soft = np.clip((TOKENS - 6 - length) / 6, -1, 0)
  reward = np.where(mixed.correct, 1.0, -1.0) + soft
  deviation = reward - reward.mean(axis=1, keepdims=True)
  advantage = deviation / (np.sqrt((deviation**2).sum(axis=1, keepdims=True) / (G - 1)) + 1e-6)
  values = metrics.means(sums)
  np.testing.assert_allclose(
    values["policy_objective"], (advantage * length).sum() / length.sum(), rtol=1e-4
  )
  np.testing.assert_allclose(values["kept/reward"], reward.mean(), rtol=1e-5)
  np.testing.assert_allclose(values["kept/accuracy"], mixed.correct.mean(), rtol=1e-5)
  np.testing.assert_allclose(values["kept/length_tokens"], length.mean(), rtol=1e-5)
  assert values["kept/groups"] == 8 and values["rounds"] == 1
  assert sums["policy_objective"][1] == length.sum()


@pytest.mark.parametrize("minibatches", [1, 2])
def test_without_mixed_groups_the_policy_is_unchanged(
  policy, sampled, settings, minibatches, update
):
  settings = change(settings, minibatches=minibatches)
  correct = np.repeat(np.arange(8)[:, None] % 2, G, axis=1)
  state = collected(policy, judged(shortened(sampled, settings, 1), correct), settings)
  before = jax.device_get(state.train)
  after, sums = update(state, settings)
  assert_equal(after.train, before)
  assert after.batches == 1 and after.rounds == 0 and after.filled == 0 and after.cursor == 8
  values = metrics.means(sums)
  assert values["kept/groups"] == 0 and values["sampled/mixed_outcomes"] == 0
  assert values["sampled/all_right"] == values["sampled/all_wrong"] == 0.5
  assert not {"policy_objective", "ratio_max", "kept/reward", "entropy"} & values.keys()
  assert np.isfinite(list(values.values())).all()


def test_an_empty_minibatch_makes_no_step(policy, mixed, settings, update):
  """One group for two mini-batches: a single update, no decay and no momentum for the other."""
  one = judged(mixed, np.concatenate([some_right(1), np.zeros((7, G))]))
  two = change(settings, minibatches=2)
  state, _ = update(collected(policy, one, two), two)
  expected, _ = update(collected(policy, one, settings), settings)
  assert state.train.step == expected.train.step == 1
  assert_close(state.train.params, expected.train.params)


def test_a_partial_buffer_weights_only_its_groups(policy, mixed, settings, update):
  kept = [1, 4, 6]
  correct = np.where(np.isin(np.arange(8), kept)[:, None], mixed.correct, False)
  partial, sums = update(collected(policy, judged(mixed, correct), settings), settings)
  fewer = change(settings, groups_per_batch=3)
  expected, expected_sums = update(collected(policy, rows(mixed, kept), fewer), fewer)
  assert_close(partial.train, expected.train)
  assert {"policy_objective", "grad_norm", "entropy", "ratio_max"} <= sums.keys()
  for name in sums.keys() - {"kept/groups", *(n for n in sums if n.startswith("sampled/"))}:
    np.testing.assert_allclose(sums[name], expected_sums[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_stale_rows_of_the_buffer_are_ignored(policy, mixed, settings, update):
  """Emptying the buffer only resets its counter: old rows stay after the new ones."""
  state, _ = update(collected(policy, mixed, settings), settings)
  state = jax.tree.map(jnp.array, state).replace(train=fresh(policy, settings).train)
  few = judged(mixed, np.where(np.arange(8)[:, None] < 2, mixed.correct, False))
  again, sums = update(rollout_buffer.collect(state, few, settings=settings), settings)
  expected, expected_sums = update(collected(policy, few, settings), settings)
  assert sums["policy_objective"][1] == expected_sums["policy_objective"][1]
  assert_close(again.train, expected.train)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_do_not_change_the_update(policy, mixed, settings, micro_batches, update):
  expected, expected_sums = update(collected(policy, mixed, settings), settings)
  cut = change(settings, micro_batches=micro_batches)
  found, sums = update(collected(policy, mixed, cut), cut)
  assert_close(found.train, expected.train)
  assert sums["policy_objective"][1] == expected_sums["policy_objective"][1]
  assert_means_close(sums, expected_sums)


@pytest.mark.parametrize(
  "sizes",
  [
    {"data": 2, "fsdp": 2, "tensor": 2},
    # Fewer groups than devices: each pair shares copies, and computes the answers in two parts.
    pytest.param({"data": 2, "fsdp": 4}, marks=pytest.mark.slow),
  ],
)
def test_sharded_update_equals_the_unsharded(policy, mixed, settings, update, sizes):
  settings = change(settings, minibatches=2)
  expected, expected_sums = update(collected(policy, mixed, settings), settings)
  settings = change(settings, micro_batches=2)
  mesh = sharding.make_mesh(sizes)
  state = fresh(policy, settings)
  state = state.replace(
    train=jax.device_put(state.train, sharding.state_shardings(mesh, state.train)),
    buffer=process_rows.make_global_batch(mesh, jax.device_get(state.buffer)),
  )
  where = rollout_buffer.state_shardings(mesh, state)
  with jax.set_mesh(mesh):
    state = rollout_buffer.collect(
      state, process_rows.make_global_batch(mesh, mixed), settings=settings
    )
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
    found, sums = update(
      state, settings, place=functools.partial(process_rows.make_global_batch, mesh)
    )
  # The devices add in another order, which the optimizer magnifies where a gradient is next to zero.
  assert_close(found.train, expected.train, relative=5e-5)
  assert_means_close(sums, expected_sums)


def test_good_answers_become_likelier_and_bad_ones_less_likely(
  policy, mixed, settings, update, prompts
):
  state, _ = update(collected(policy, mixed, settings), settings)

  def of_answers(params):
    logp = score(policy, params, prompts, mixed, settings)
    return np.where(mixed.mask, logp, 0).sum(axis=-1)

  gain = of_answers(state.train.params) - of_answers(policy.params)
  right = np.asarray(mixed.correct)
  # Differences within a group, because all answers gain or lose by the tokens that they share.
  gain = gain - gain.mean(axis=1, keepdims=True)
  assert gain[right].mean() > 0 > gain[~right].mean()


# Other objectives


def test_gspo_can_replace_dapo(policy, mixed, settings, update):
  """Before any step the sequence ratio is 1: the objective is the mean advantage over answers, not over tokens."""
  gspo = change(settings, objectives=(("gspo", 1.0),))
  state, sums = update(collected(policy, mixed, gspo), gspo)
  reward = policy_optimization.shaped_reward(mixed, settings)
  advantage = policy_optimization.group_advantage(reward, mixed.correct)
  found = metrics.means(sums)["policy_objective"]
  np.testing.assert_allclose(found, np.mean(advantage), atol=1e-5)
  expected, _ = update(collected(policy, mixed, settings), settings)
  moved = [
    np.abs(a - b).max()
    for a, b in zip(*(jax.tree.leaves(s.train.params) for s in (state, expected)), strict=True)
  ]
  assert max(moved) > 1e-5


def test_a_penalty_pulls_the_policy_back_to_its_reference(policy, mixed, settings, update):
  """Away from the reference the penalty is positive and enters the update; at the reference it is zero."""
  penalised = change(settings, objectives=(("dapo", 1.0), ("kl_reference", 0.5)))
  elsewhere = jax.tree.map(lambda x: x * 1.02, policy.params)
  plain, plain_sums = update(collected(policy, mixed, settings), settings)
  at_home, home_sums = update(collected(policy, mixed, penalised), penalised, policy.params)
  away, away_sums = update(collected(policy, mixed, penalised), penalised, elsewhere)
  home, far = metrics.means(home_sums), metrics.means(away_sums)
  np.testing.assert_allclose(home["objective/kl_reference"], 0.0, atol=1e-6)
  assert_close(at_home.train.params, plain.train.params)
  assert far["objective/kl_reference"] < -1e-5
  np.testing.assert_allclose(
    far["policy_objective"],
    far["objective/dapo"] + 0.5 * far["objective/kl_reference"],
    rtol=1e-4,
    atol=1e-6,
  )
  assert "objective/dapo" not in plain_sums
  with pytest.raises(AssertionError):
    assert_close(away.train.params, plain.train.params)


# Sizes


def test_shapes_of_groups_are_those_of_judged_ones(sampled, settings):
  shapes = rollout_buffer.rollout_shapes(8, settings)
  found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), sampled)
  assert found == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)


def test_answers_are_cut_to_the_smallest_length_that_holds_them(settings):
  settings = change(settings, answer_lengths=(4, 8))
  assert [settings.answer_length(longest) for longest in (0, 3, 4, 5, 9, 12)] == [
    4,
    4,
    4,
    8,
    12,
    12,
  ]


def test_an_update_of_cut_answers_equals_that_of_padded_ones(policy, mixed, settings, update):
  """Each mini-batch has its own length: here 4 and 8 of 12 tokens."""
  two = change(settings, minibatches=2)
  limit = np.where(np.arange(8) % 2, 8, 3)[:, None]
  lengths = np.minimum(mixed.length_tokens, limit)
  short = mixed.replace(
    mask=np.arange(TOKENS) < lengths[..., None], length_tokens=lengths.astype(np.int32)
  )
  cut = change(two, answer_lengths=(4, 8))
  seen = []
  original = policy_optimization.take_minibatch

  def remember(*arguments, length, **more):
    seen.append(length)
    return original(*arguments, length=length, **more)

  expected, expected_sums = update(collected(policy, short, two), two)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(policy_optimization, "take_minibatch", remember)
    found, sums = update(collected(policy, short, cut), cut)
  assert seen == [4, 8]
  assert_close(found.train, expected.train)
  assert_means_close(sums, expected_sums)


def test_the_phases_of_an_update_are_timed(policy, mixed, settings, prompts):
  clock = PhaseClock()
  policy_optimization.update_policy(
    collected(policy, mixed, settings),
    lambda numbers: rows(prompts, numbers),
    Constants(policy.forbidden_tokens),
    model=policy.model,
    optimizer=OPTIMIZER,
    settings=settings,
    clock=clock,
  )
  found = clock.read()
  assert found.keys() == {"time/old_logprobs_s", "time/update_s"} and min(found.values()) > 0
  assert clock.read() == {}


def wider(prompts, settings, tokens=16, patches=32):
  """The same prompts in a larger padded size, as another bucket has."""

  def left(x, value=0):
    return np.pad(x, [(0, 0), (tokens, 0)] + [(0, 0)] * (x.ndim - 2), constant_values=value)

  def right(x):
    return np.pad(x, [(0, 0), (0, patches)] + [(0, 0)] * (x.ndim - 2))

  return prompts.replace(
    tokens=left(prompts.tokens, settings.pad),
    segments=left(prompts.segments),
    positions=left(prompts.positions),
    vision=jax.tree.map(right, prompts.vision),
  )


def test_sampling_and_scores_do_not_depend_on_the_padded_size_of_prompts(policy, prompts, settings):
  padded = wider(prompts, settings)
  found = [
    generate(
      policy.params,
      asked,
      jax.random.key(5),
      policy.forbidden_tokens,
      model=policy.model,
      sampling=settings.sampling,
    )
    for asked in (prompts, padded)
  ]
  np.testing.assert_array_equal(found[1].tokens, found[0].tokens)
  np.testing.assert_allclose(found[1].logp, found[0].logp, atol=1e-5)
  automaton = compile_automaton(
    STATEMENT, token_bytes(policy.processor.tokenizer), policy.special.eos
  )
  rollout = rollout_buffer.judge_groups(prompts, found[0], automaton, group_size=G)
  scores = [score(policy, policy.params, asked, rollout, settings) for asked in (prompts, padded)]
  mask = np.asarray(rollout.mask)
  np.testing.assert_allclose(scores[1][mask], scores[0][mask], atol=1e-5)
