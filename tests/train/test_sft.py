"""The step of supervised fine-tuning: its sums, micro-batches and shardings."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_settings import adamw_settings

from spatial_vlm import metrics, process_rows, sharding
from spatial_vlm.data import messages
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.model import qwen3_vl
from spatial_vlm.optim.optimizers import make_optimizer
from spatial_vlm.processor.chat import Size, collate_batch, encode, total_size
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.tasks import statements
from spatial_vlm.train import sft, update
from spatial_vlm.train.sft import SftSettings, sft_loop, sft_loss, sft_step

# eps: Adam divides by |g| + eps, and entries whose true gradient is zero (key biases) are nothing but rounding.
OPTIMIZER = make_optimizer(
  adamw_settings(schedule="cosine", warmup_steps=2, final_fraction=0.1, eps=1e-4)
)


def settings(micro_batches=1, chunk_tokens=4096, remat="none", dtype="float32"):
  return SftSettings(micro_batches, chunk_tokens, remat, dtype)


@pytest.fixture(scope="module")
def batch(policy):
  """Eight conversations with very different numbers of target tokens: chains, single verdicts, several turns."""
  source = SceneSource("train", 0, 8)
  rows = []
  for i, example in enumerate(source):
    caption = example.record.caption
    turns = [
      [(statements.question(caption, "chain"), scene_teacher.chain(example))],
      [(statements.question(caption, "direct"), "Yes.")],
      [scene_teacher.listing(example.scene), (statements.question(caption, "direct"), "No.")],
    ][i % 3]
    rows.append(encode(policy.processor, messages.conversation(example.image, turns)))
  batch = collate_batch([[row] for row in rows], policy.processor, Size(192, 64))
  counts = batch.targets.sum(axis=1)
  assert counts.min() * 5 < counts.max()
  return batch


def fresh(policy):
  return update.init_state(jax.tree.map(jnp.array, policy.params), OPTIMIZER)


def step(state, batch, policy, **changes):
  state, sums = sft_step(
    state, batch, model=policy.model, optimizer=OPTIMIZER, settings=settings(**changes)
  )
  return jax.device_get(state), jax.device_get(sums)


@functools.partial(
  jax.jit, static_argnums=(2, 3)
)  # compiled once for all tests that take the same settings
def summed_gradient(params, batch, model, chosen):
  def loss(params, rows):
    total, count = sft_loss(params, rows, model, chosen)
    return total, {"loss": (total, count)}

  pieces = update.cut_rows(batch, chosen.micro_batches)
  return update.accumulate(jax.grad(loss, has_aux=True), params, pieces)


def gradient(policy, batch, **changes):
  chosen = settings(**changes)

  grads, sums = summed_gradient(policy.params, batch, policy.model, chosen)
  return jax.device_get(update.mean_gradient(grads, sums["loss"][1])), jax.device_get(sums["loss"])


def assert_close(found, expected, relative=1e-5):
  """Each array to 1e-5 of its largest entry; if that is nearly zero, of the largest of all."""
  largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))

  def check(path, a, b):
    scale = max(float(np.abs(b).max()), 1e-2 * largest)
    np.testing.assert_allclose(
      a, b, rtol=0, atol=relative * scale, err_msg=jax.tree_util.keystr(path)
    )

  jax.tree_util.tree_map_with_path(check, found, expected)


def test_loss_is_the_cross_entropy_of_the_targets(policy, batch):
  hidden = qwen3_vl.forward(policy.params, policy.model, batch)
  logits = np.asarray(qwen3_vl.logits(policy.params, policy.model, hidden), np.float64)
  total, count = 0.0, 0
  for b, t in zip(*np.nonzero(batch.targets), strict=True):
    before = logits[b, t - 1]
    total += np.log(np.exp(before - before.max()).sum()) + before.max() - before[batch.tokens[b, t]]
    count += 1
  found, found_count = sft_loss(policy.params, batch, policy.model, settings())
  np.testing.assert_allclose(found, total, rtol=1e-5)
  assert found_count == count == batch.targets.sum()


@pytest.mark.parametrize(
  "micro_batches",
  [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)],
)
def test_micro_batches_change_neither_gradient_nor_update(policy, batch, micro_batches):
  """Rows of unequal length: a mean of the micro-batches' means would be another gradient."""
  expected, (total, count) = gradient(policy, batch)
  found, (found_total, found_count) = gradient(policy, batch, micro_batches=micro_batches)
  assert found_count == count == batch.targets.sum()
  np.testing.assert_allclose(found_total, total, rtol=1e-5)
  assert_close(found, expected)
  expected_state, expected_sums = step(fresh(policy), batch, policy)
  state, sums = step(fresh(policy), batch, policy, micro_batches=micro_batches)
  assert sums["target_tokens"] == expected_sums["target_tokens"] == (count, 1)
  np.testing.assert_allclose(sums["grad_norm"][0], expected_sums["grad_norm"][0], rtol=1e-5)
  assert_close(state.params, expected_state.params)
  assert_close(state.opt_state, expected_state.opt_state)
  assert state.step == 1


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param({"chunk_tokens": 7}, marks=pytest.mark.slow),
    pytest.param({"remat": "full"}, marks=pytest.mark.slow),
    {"remat": "dots", "chunk_tokens": 50},
  ],
)
def test_saving_memory_does_not_change_the_gradient(policy, batch, changes):
  expected, _ = gradient(policy, batch)
  assert_close(gradient(policy, batch, **changes)[0], expected)


def test_sharded_step_equals_the_unsharded(policy, batch):
  expected, expected_sums = step(fresh(policy), batch, policy, micro_batches=2)
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  state = fresh(policy)
  placed = jax.device_put(state, sharding.state_shardings(mesh, state))
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed.params))
  where = jax.tree.map(lambda leaf: leaf.sharding, placed)
  with jax.set_mesh(mesh):
    found, sums = sft_step(
      placed,
      process_rows.make_global_batch(mesh, batch),
      model=policy.model,
      optimizer=OPTIMIZER,
      settings=settings(micro_batches=2),
    )
  # Its sharding is unchanged, so that the next update is the same program.
  assert jax.tree.map(lambda leaf: leaf.sharding, found) == where
  assert sums["target_tokens"] == expected_sums["target_tokens"]
  assert_close(jax.device_get(found.params), expected.params)
  assert_close(jax.device_get(found.opt_state), expected.opt_state)
  for name in expected_sums:
    np.testing.assert_allclose(sums[name], expected_sums[name], rtol=1e-5)


def test_user_tokens_are_not_learnt(policy):
  """User tokens after the last answer are neither predicted nor attended to by predicted tokens."""
  image = SceneSource("train", 0, 2)[0].image
  rows = [
    encode(policy.processor, messages.conversation(image, [("Is it red?", "Yes."), (last,)]))
    for last in ("Where is the bar?", "Where is the square?")
  ]
  assert len(rows[0].tokens) == len(rows[1].tokens) and not np.array_equal(
    rows[0].tokens, rows[1].tokens
  )
  (first, one), (second, other) = (
    gradient(policy, collate_batch([[row]], policy.processor, Size(96, 64))) for row in rows
  )
  assert one == other and one[1] > 0
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_batch_without_targets_moves_nothing_but_decay(policy, batch):
  state, sums = step(fresh(policy), batch.replace(targets=np.zeros_like(batch.targets)), policy)
  assert sums["loss"] == (0.0, 0) and sums["grad_norm"][0] == 0
  for leaf in jax.tree.leaves(state):
    assert np.isfinite(leaf).all()


def test_compute_is_bfloat16_and_state_is_float32(policy, batch):
  state, sums = step(fresh(policy), batch, policy, dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
  _, exact = step(fresh(policy), batch, policy)
  assert sums["loss"] != exact["loss"]
  np.testing.assert_allclose(sums["loss"], exact["loss"], rtol=1e-2)


def test_overfitting_one_batch_lowers_the_loss(policy, batch):
  state, losses = fresh(policy), []
  for _ in range(8):
    state, sums = step(state, batch, policy)
    losses.append(metrics.means(sums)["loss"])
  assert losses[-1] < losses[0] - 0.02 and state.step == 8


@pytest.mark.parametrize(("steps", "available", "expected"), [(5, 9, 5), (0, 9, 0), (5, 3, 3)])
def test_loop_yields_as_many_states_as_steps(steps, available, expected):
  taken = []
  batches = (taken.append(i) or i for i in range(available))
  found = list(sft_loop(0, batches, lambda state, batch: (state + 1, {"batch": batch}), steps))
  assert found == [(i + 1, {"batch": i}) for i in range(expected)]
  assert len(taken) == expected  # a batch taken and not used would be missing after a restart


def test_loop_is_lazy():
  batches = itertools.repeat(1)
  loop = sft_loop(0, batches, lambda state, batch: (state + batch, {}), 10**9)
  assert [state for state, _ in itertools.islice(loop, 3)] == [1, 2, 3]


def test_cut_rows_deals_rows_like_cards():
  pieces = update.cut_rows({"a": np.arange(12).reshape(6, 2)}, 3)
  assert pieces["a"][:, :, 0].tolist() == [[0, 6], [2, 8], [4, 10]]


@pytest.fixture(scope="module")
def conversations(policy):
  """Images of several sizes, none square; text alone; two images in one conversation; different numbers of targets."""
  rng = np.random.default_rng(0)

  def image(height, width):
    return rng.integers(0, 256, (height, width, 3), np.uint8)

  source = list(SceneSource("train", 0, 4))
  chain = [(statements.question(source[0].record.caption, "chain"), scene_teacher.chain(source[0]))]
  several = [scene_teacher.listing(source[1].scene), ("Is it red?", "No.")]
  both = messages.conversation(image(96, 64), [("Which is larger?", "The second.")])
  both[0]["content"].insert(1, {"type": "image", "image": image(64, 112)})
  conversations = [
    messages.conversation(image(48, 128), chain),
    [{"role": "user", "content": "x=1?"}, {"role": "assistant", "content": "Yes."}],
    messages.conversation(image(128, 48), several),
    both,
    messages.conversation(image(112, 80), [("Where is it?", "Left.")]),
  ]
  encoded = [encode(policy.processor, conversation) for conversation in conversations]
  assert len({grid for row in encoded for _, grid in row.images}) == 5
  return encoded


def in_rows(policy, rows):
  """Those rows, in a shape that leaves padding in each."""
  sizes = [total_size(conversation.size for conversation in row) for row in rows]
  shape = Size(max(s.tokens for s in sizes) + 7, max(s.patches for s in sizes) + 12)
  return collate_batch(rows, policy.processor, shape)


PACKED = [[0, 1, 2], [], [3, 4]]
"""Numbers of the conversations in each row."""


@pytest.mark.slow
def test_packed_conversations_have_the_logits_they_have_alone(policy, conversations):
  packed = in_rows(policy, [[conversations[i] for i in row] for row in PACKED])
  logits = qwen3_vl.logits(
    policy.params, policy.model, qwen3_vl.forward(policy.params, policy.model, packed)
  )
  assert np.isfinite(logits).all()
  for b, row in enumerate(PACKED):
    start = 0
    for number in row:
      alone = in_rows(policy, [[conversations[number]]])
      hidden = qwen3_vl.forward(policy.params, policy.model, alone)
      expected = qwen3_vl.logits(policy.params, policy.model, hidden)
      count = len(conversations[number].tokens)
      np.testing.assert_allclose(
        logits[b, start : start + count], expected[0, :count], rtol=0, atol=1e-5
      )
      start += count


def test_packing_changes_neither_loss_nor_gradient(policy, conversations):
  singles = in_rows(policy, [[conversation] for conversation in conversations])
  packed = in_rows(policy, [[conversations[i] for i in row] for row in PACKED])
  expected, (total, count) = gradient(policy, singles)
  found, (found_total, found_count) = gradient(policy, packed)
  assert found_count == count == sum(row.targets.sum() for row in conversations)
  np.testing.assert_allclose(found_total, total, rtol=1e-6)  # sums over rows of other lengths
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), found, expected)
  assert max(float(np.abs(x).max()) for x in jax.tree.leaves(expected)) > 0.01


def test_padding_is_counted_in_slots(policy, conversations):
  batch = in_rows(policy, [[conversations[i] for i in row] for row in PACKED])
  _, sums = step(fresh(policy), batch, policy)
  used = total_size(conversation.size for conversation in conversations)
  slots = Size(batch.tokens.size, batch.vision.segments.size)
  assert sums["input/token_padding"] == (slots.tokens - used.tokens, slots.tokens)
  assert sums["input/patch_padding"] == (slots.patches - used.patches, slots.patches)
  assert "input/patch_padding" not in sft.padding(batch.replace(vision=None))
