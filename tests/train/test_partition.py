"""Updates of a subset of the parameters: the same gradient as in full training, and no state for the rest."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_settings import adamw_settings
from rl_settings import rl_settings

from spatial_vlm import sharding
from spatial_vlm.data import messages
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.inference.loading import load_policy_for_training
from spatial_vlm.inference.policy import encode_question
from spatial_vlm.model import stack
from spatial_vlm.optim.optimizers import make_optimizer
from spatial_vlm.parameters import int8, lora
from spatial_vlm.parameters.partition import Subset, combine, flatten, partition, unflatten
from spatial_vlm.parameters.paths import path_name, sibling
from spatial_vlm.processor.chat import Size, collate_batch, collate_prompts, encode
from spatial_vlm.tasks import statements
from spatial_vlm.train import policy_optimization, sft, update
from spatial_vlm.train.policy_optimization import Constants, Minibatch, MinibatchScores
from spatial_vlm.train.sft import SftSettings, sft_loss, sft_step
from spatial_vlm.types import Rollout

RANK, ALPHA = 3, 6.0
LORA = Subset(
  (".*/lora_[ab]",), RANK, ALPHA, ("(text/layers|vision/blocks)/.*_proj/kernel",), "float32", False
)
SETTINGS = SftSettings(micro_batches=2, chunk_tokens=4096, remat="full", dtype="float32")
DESCENT = optax.sgd(1.0)  # so that an update is the gradient
ADAMW = make_optimizer(adamw_settings(warmup_steps=1))


@pytest.fixture(scope="module")
def batch(policy):
  rows = [
    encode(
      policy.processor,
      messages.conversation(
        example.image,
        [(statements.question(example.record.caption, "direct"), "Yes, it is.")],
      ),
    )
    for example in SceneSource("train", 0, 4)
  ]
  return collate_batch([[row] for row in rows], policy.processor, Size(64, 64))


@pytest.fixture(scope="module")
def parts(policy):
  """(trained, frozen) with adapters whose B is not zero."""
  adapters = flatten(lora.new_adapters(policy.params, LORA, jax.random.key(0)))
  rng = np.random.default_rng(0)
  for path, leaf in adapters.items():
    if path.endswith("/lora_b"):
      adapters[path] = jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)
  return partition(combine(policy.params, unflatten(adapters)), LORA.trainable)


@pytest.fixture(scope="module")
def full_gradient(policy, batch):
  """Parameters -> mean gradient of all of them, without micro-batches and rematerialisation."""
  settings = SftSettings(1, 4096, "none", "float32")

  def mean_loss(params):
    total, count = sft_loss(params, batch, policy.model, settings)
    return total / count

  gradient = jax.jit(jax.grad(mean_loss))
  return lambda params: flatten(jax.device_get(gradient(params)))


def sft_update(policy, batch, state, frozen):
  return sft_step(state, batch, frozen, model=policy.model, optimizer=DESCENT, settings=SETTINGS)


def descent(trained, frozen, step):
  """The gradient by path, from one update of plain descent."""
  state = update.init_state(jax.tree.map(jnp.array, trained), DESCENT)
  after, _ = step(state, frozen)
  assert jax.tree.structure(after.params) == jax.tree.structure(trained)
  return flatten(jax.tree.map(lambda old, new: np.asarray(old) - new, trained, after.params))


def dapo_settings(dtype):
  return rl_settings(
    SimpleNamespace(eos=0, pad=0),
    groups_per_batch=2,
    group_size=3,
    rollout_batch_size=2,
    max_rollout_rounds=1,
    max_new_tokens=4,
    overlong_cache_tokens=1,
    temperature=1.0,
    dtype=dtype,
  )


def close(found, expected, path):
  scale = max(np.abs(expected).max(), 1e-3)
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * scale, err_msg=path)


def assert_projected(adapters, of_merged, of_adapters):
  """W' = W + s·A·B, so ∂A = s·∂W'·Bᵀ and ∂B = s·Aᵀ·∂W', layer by layer, in NumPy."""
  kernels = [path.removesuffix("lora_a") + "kernel" for path in adapters if path.endswith("lora_a")]
  assert len(kernels) == 7 + 4 and len(of_adapters) == 2 * len(kernels)
  for kernel in kernels:
    paths = [sibling(kernel, half) for half in ("lora_a", "lora_b")]
    a, b = (np.asarray(adapters[path], np.float64) for path in paths)
    for layer, gradient in enumerate(of_merged[kernel]):
      A, B = a[layer].reshape(-1, RANK), b[layer].reshape(RANK, -1)
      G = gradient.reshape(len(A), -1)
      for path, expected in zip(paths, (G @ B.T, A.T @ G), strict=True):
        found = of_adapters[path][layer].reshape(expected.shape)
        close(found, ALPHA / RANK * expected, f"{path} {layer}")


def test_an_adapter_step_is_the_projected_full_gradient(policy, batch, parts, full_gradient):
  trained, frozen = parts
  gradient = full_gradient(lora.merge_adapters(combine(trained, frozen)))
  assert_projected(
    flatten(trained), gradient, descent(*parts, lambda *s: sft_update(policy, batch, *s))
  )


@pytest.fixture(scope="module")
def rollout(policy):
  """Two groups of three answers of four random tokens, with advantages."""
  rows = [
    encode_question(
      policy.processor, example.image, statements.question(example.record.caption, "direct")
    )
    for example in SceneSource("train", 0, 2)
  ]
  asked = collate_prompts(rows, policy.processor, range(2), [1, 0], 64, 64)
  rng = np.random.default_rng(1)
  shape = (2, 3, 4)
  allowed = np.flatnonzero(~policy.forbidden_tokens)
  return Minibatch(
    asked,
    Rollout(
      ids=asked.ids,
      label=asked.label,
      tokens=rng.choice(allowed, shape).astype(np.int32),
      mask=np.arange(4) < rng.integers(1, 5, (2, 3, 1)),
      logp=np.zeros(shape, np.float32),
      verdict=np.zeros(shape[:2], np.int32),
      correct=np.zeros(shape[:2], bool),
      length_tokens=np.full(shape[:2], 4, np.int32),
      advantage=rng.normal(size=shape[:2]).astype(np.float32),
    ),
  )


@pytest.mark.slow
def test_a_dapo_update_of_adapters_is_projected_too(policy, parts, rollout):
  settings = dapo_settings("float32")

  @jax.jit
  def step(state, frozen):
    return policy_optimization.rl_step(
      *(state, rollout, MinibatchScores(rollout.rollout.logp, None, True)),
      Constants(policy.forbidden_tokens, frozen),
      model=policy.model,
      optimizer=DESCENT,
      settings=settings,
    )

  gradient = descent(lora.merge_adapters(combine(*parts)), {}, step)
  assert_projected(flatten(parts[0]), gradient, descent(*parts, step))


@pytest.fixture(scope="module")
def in_int8(nano, parts):
  """The frozen ones of `parts`, their kernels in int8."""
  mesh = sharding.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
  subset = dataclasses.replace(LORA, frozen_int8=True)
  params = load_policy_for_training(str(nano), mesh, subset).params
  return combine(
    params, partition(parts[1], (".*/kernel", ".*/bias", ".*/scale", ".*/embedding"))[1]
  )


def test_a_step_over_int8_kernels_equals_one_over_their_dequantized_values(
  policy, batch, parts, in_int8
):
  trained, frozen = parts
  made = int8.dequantize(in_int8)
  assert flatten(made).keys() == flatten(frozen).keys()
  found, expected, before = (
    descent(trained, base, lambda *s: sft_update(policy, batch, *s))
    for base in (in_int8, made, frozen)
  )
  assert found.keys() == flatten(trained).keys()
  for path, gradient in found.items():
    close(gradient, expected[path], path)
  assert any(np.abs(found[path] - before[path]).max() > 1e-4 for path in found)


def test_with_the_vision_tower_frozen_the_others_move_as_in_full_training(
  policy, batch, full_gradient
):
  trained, frozen = partition(policy.params, ("(text|head)/.*",))
  found = descent(trained, frozen, lambda *s: sft_update(policy, batch, *s))
  gradient = full_gradient(policy.params)
  assert found and not any(path.startswith("vision/") for path in found)
  for path, of_part in found.items():
    close(of_part, gradient[path], path)


@pytest.mark.parametrize(
  "patterns", [LORA.trainable, (".*/lora_.", "text/embed/.*", "vision/.*/scale")]
)
@pytest.mark.parametrize("method", ["adamw", "muon"])
def test_no_moment_exists_for_what_is_frozen(parts, patterns, method):
  trained, frozen = partition(combine(*parts), patterns)
  settings = adamw_settings(method=method, warmup_steps=1)
  state = jax.eval_shape(lambda p: update.init_state(p, make_optimizer(settings)), trained)
  names = [
    path_name(path)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
    if leaf.shape
  ]
  moments = [name for name in names if not name.endswith("ns_coeffs")]
  assert len(moments) == 2 * len(flatten(trained))
  for name in moments:
    assert any(name.endswith(path) for path in flatten(trained)), name
    assert not any(name.endswith(path) for path in flatten(frozen)), name


def test_full_training_compiles_to_the_same_program(policy, batch, monkeypatch):
  """Combining and merging add nothing to the program if everything trains."""

  def program():
    state = update.init_state(policy.params, ADAMW)
    step = functools.partial(
      sft_step.__wrapped__, model=policy.model, optimizer=ADAMW, settings=SETTINGS
    )
    return str(jax.make_jaxpr(step)(state, batch))

  found = program()
  monkeypatch.setattr(sft, "combine", lambda trained, frozen: trained)
  monkeypatch.setattr(stack, "effective_kernels", lambda params: params)
  assert found == program()


def test_sampling_makes_no_copy_of_kernels_in_int8(parts, in_int8):
  trained, _ = parts
  found = policy_optimization.rollout_weights(trained, in_int8, "bfloat16")
  assert not any(path.endswith("/kernel") for path in flatten(found))
  made = flatten(lora.effective_kernels(found))
  expected = flatten(lora.merge_adapters(combine(trained, int8.dequantize(in_int8))))
  assert made.keys() == expected.keys()
  for path, leaf in made.items():
    assert leaf.dtype == "bfloat16"
    difference = np.asarray(leaf, np.float32) - np.asarray(expected[path])
    assert np.abs(difference).max() <= 0.02, path


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_answers_are_sampled_from_the_merged_kernels(parts, dtype, tolerance):
  trained, frozen = parts
  found = flatten(policy_optimization.rollout_weights(trained, frozen, dtype))
  expected = flatten(lora.merge_adapters(combine(trained, frozen)))
  assert found.keys() == expected.keys()
  for path, leaf in found.items():
    assert leaf.dtype == dtype
    difference = np.asarray(leaf, np.float32) - np.asarray(expected[path])
    assert np.abs(difference).max() <= tolerance, path
