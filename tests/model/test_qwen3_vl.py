"""The whole model against transformers' own, in float32 with random weights of a scale at which every part matters."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from answer_rows import answers_to, whole_rows
from flax import nnx
from jax import numpy as jnp

from spatial_vlm.huggingface.weights import abstract_params
from spatial_vlm.model import qwen3_vl, text
from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.stack import REMAT_POLICIES
from spatial_vlm.parameters.paths import path_name

ROWS = {
  "text only": [[40], [23], [31]],
  "one image": [[5, (6, 10), 20]],
  "several images": [[4, (6, 10), 3, (8, 4), 12], [2, (4, 4), 9, (2, 14), 1, (10, 6), 6]],
  "images and text": [[3, (8, 6), 10], [30], [12, (4, 10), 2, (6, 6), 4]],
}
CASES = [
  ("text only", "right"),
  ("one image", "right"),
  ("several images", "right"),
  ("several images", "left"),
  ("images and text", "left"),
]


def _logits(params, config, batch):
  return qwen3_vl.logits(params, config, qwen3_vl.forward(params, config, batch))


_jitted_logits = jax.jit(_logits, static_argnums=1)


def _largest_difference(reference, case, params=None, batch=None, logits=_jitted_logits) -> float:
  """Largest absolute difference of a logit at a real token, in units of about one standard deviation."""
  with torch.no_grad():
    expected = reference.model(**case.hf).logits.numpy()
  assert 0.5 < expected[case.real].std() < 2
  got = logits(
    reference.params if params is None else params,
    reference.config,
    case.batch if batch is None else batch,
  )
  return float(np.abs(np.asarray(got) - expected)[case.real].max())


@pytest.mark.parametrize(("rows", "side"), CASES)
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_logits_equal_the_reference(reference, make_case, size, rows, side):
  reference = reference(size)
  assert _largest_difference(reference, make_case(reference, ROWS[rows], side)) <= 1e-5


def test_logits_of_a_model_without_deepstack_equal_the_reference(reference, make_case):
  reference = reference("without deepstack")
  case = make_case(reference, ROWS["several images"], "left")
  assert _largest_difference(reference, case) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "side"), CASES)
def test_logits_of_a_larger_model_equal_the_reference(reference, make_case, rows, side):
  reference = reference("large")
  assert sum(x.size for x in jax.tree.leaves(reference.params)) > 40e6
  assert _largest_difference(reference, make_case(reference, ROWS[rows], side)) <= 2e-5


# Omissions of popular ports. Each must change the logits; otherwise the tests above prove nothing about it.


def test_without_deepstack_parity_breaks(reference, make_case):
  reference = reference("tiny")
  params = jax.tree.map(lambda x: x, reference.params)
  mergers = params["vision"]["deepstack_mergers"]
  mergers["fc2"] = jax.tree.map(np.zeros_like, mergers["fc2"])
  case = make_case(reference, ROWS["several images"])
  assert _largest_difference(reference, case, params=params) > 0.1


def test_with_plain_positions_parity_breaks(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"])
  plain = np.broadcast_to(np.arange(case.real.shape[1])[None, :, None], case.batch.positions.shape)
  batch = case.batch.replace(positions=plain.astype(np.int32))
  assert _largest_difference(reference, case, batch=batch) > 0.1


def test_with_height_and_width_swapped_parity_breaks(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"])
  batch = case.batch.replace(positions=case.batch.positions[:, :, [0, 2, 1]])
  assert _largest_difference(reference, case, batch=batch) > 0.1


def test_without_padding_mask_parity_breaks(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"], "left")
  batch = case.batch.replace(segments=np.ones_like(case.batch.segments))
  assert _largest_difference(reference, case, batch=batch) > 0.1


def test_attending_across_images_parity_breaks(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"])
  one_frame = np.minimum(case.batch.vision.segments, 1)
  batch = case.batch.replace(vision=case.batch.vision.replace(segments=one_frame))
  assert _largest_difference(reference, case, batch=batch) > 0.01


def test_with_tanh_gelu_in_the_merger_parity_breaks(reference, make_case, monkeypatch):
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"])
  monkeypatch.setattr(nnx, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=True))
  logits = jax.jit(lambda *inputs: _logits(*inputs), static_argnums=1)  # compiled with the patch
  assert _largest_difference(reference, case, logits=logits) > 1e-4


@pytest.mark.parametrize("size", ["tiny", pytest.param("small", marks=pytest.mark.slow)])
def test_greedy_generation_equals_the_reference(reference, make_case, greedy, size):
  reference = reference(size)
  left, right = (make_case(reference, ROWS["images and text"], side) for side in ("left", "right"))
  with torch.no_grad():
    expected = reference.model.generate(
      **left.hf, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0
    )[:, left.real.shape[1] :].numpy()
  assert expected.shape == (3, 64)
  assert len(np.unique(expected)) > 20  # not the same token over and over
  for case in (left, right):
    got = greedy(reference.params, reference.config, case.prompts, 64)
    np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("unrolled", [text.UNROLLED_LAYERS, 0])
def test_samples_of_a_group_share_images_and_cache(reference, make_case, monkeypatch, unrolled):
  """Three continuations of each prompt, fed token by token, equal whole rows that repeat image and prompt."""
  monkeypatch.setattr(text, "UNROLLED_LAYERS", unrolled)
  reference = reference("tiny")
  params, config = reference.params, reference.config
  prompts = make_case(reference, [[3, (4, 6), 5], [2, (6, 4), 4]], "left").prompts
  answers = np.random.default_rng(0).integers(1, 500, (6, 4)).astype(np.int32)

  _, cache = qwen3_vl.prefill(params, config, prompts)
  decode = jax.jit(qwen3_vl.decode, static_argnums=1)
  weights = qwen3_vl.decoding_params(params, config)
  stepwise = []
  for t in range(answers.shape[1]):
    if t in (0, 3):
      cache = qwen3_vl.add_cache_block(cache, 3, len(answers))
    logits, cache = decode(weights, config, answers[:, t], cache)
    stepwise.append(np.asarray(logits))

  rows = whole_rows(prompts, answers_to(prompts, answers, np.ones_like(answers)))
  expected = _jitted_logits(params, config, rows)[:, -4:]
  np.testing.assert_allclose(np.stack(stepwise, axis=1), expected, atol=1e-5)
  layers = config.text.num_hidden_layers
  assert len(cache.blocks[0].keys) == (layers if unrolled else 1)
  assert [len(block.valid) for block in cache.blocks] == [2, 6, 6]
  assert int(cache.used) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_that_share_a_prompt_equal_whole_rows(reference, make_case, side):
  """Hidden states and the gradient of every parameter, with images, padding and answers of different lengths."""
  reference = reference("small")
  params, config = reference.params, reference.config
  prompts = make_case(reference, [[3, (4, 6), 5, (2, 2), 2], [2, (6, 4), 4]], side).prompts
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 400, (6, 7)).astype(np.int32)
  segments = (np.arange(7) < rng.integers(1, 8, (6, 1))).astype(np.int32)
  answers = answers_to(prompts, tokens, segments)
  whole = whole_rows(prompts, answers)
  ends = np.repeat(prompts.tokens.shape[1] - 1 - np.argmax(prompts.segments[:, ::-1], axis=1), 3)
  places = np.concatenate(
    [ends[:, None], prompts.tokens.shape[1] + np.arange(7)[None].repeat(6, 0)], 1
  )
  real = np.concatenate([np.ones((6, 1)), segments], axis=1)
  weights = rng.normal(size=(*real.shape, config.text.hidden_size)) * real[..., None]

  def of_shared(params):
    read = qwen3_vl.read_prompts(params, config, prompts, "dots")
    hidden = qwen3_vl.forward_answers(params, config, prompts, read, answers, "dots")
    return jnp.sum(hidden * weights), hidden

  def of_whole(params):
    hidden = qwen3_vl.forward(params, config, whole, "dots")
    hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
    return jnp.sum(hidden * weights), hidden

  found, expected = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (of_shared, of_whole))
  mask = real[..., None] > 0
  np.testing.assert_allclose(np.where(mask, found[1], 0), np.where(mask, expected[1], 0), atol=1e-5)
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected[0]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found[0], expected[0]
  )


def test_rows_not_divisible_by_images_are_refused(reference, make_case):
  reference = reference("tiny")
  batch = make_case(reference, ROWS["several images"]).batch
  three = batch.replace(tokens=np.concatenate([batch.tokens, batch.tokens[:1]]))
  with pytest.raises(ValueError, match="3 rows of tokens cannot share 2 rows of vision"):
    qwen3_vl.forward(reference.params, reference.config, three)


def test_packed_sequences_do_not_see_each_other(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, [[17], [23]])
  alone = _jitted_logits(reference.params, reference.config, case.batch)

  def pack(x):
    return np.concatenate([x[0, :17], x[1, :23]])[None]

  packed = case.batch.replace(
    tokens=pack(case.batch.tokens),
    segments=pack(case.batch.segments * np.array([[1], [2]], np.int32)),
    positions=pack(case.batch.positions),
    targets=pack(case.batch.targets),
  )
  together = _jitted_logits(reference.params, reference.config, packed)[0]
  np.testing.assert_allclose(together[:17], alone[0, :17], atol=1e-5)
  np.testing.assert_allclose(together[17:], alone[1, :23], atol=1e-5)


def test_a_visual_token_without_its_feature_is_nan(reference, make_case):
  reference = reference("tiny")
  batch = make_case(reference, [[40, (4, 4), 3]]).batch
  tokens = batch.tokens.copy()
  tokens[0, :20] = reference.config.image_token_id
  wrong = _jitted_logits(reference.params, reference.config, batch.replace(tokens=tokens))
  assert np.isnan(np.asarray(wrong)).any()


@partial(jax.jit, static_argnames=("config", "remat"))
@jax.grad
def _gradient(params, config, batch, remat):
  hidden = qwen3_vl.forward(params, config, batch, remat)
  logp = jax.nn.log_softmax(qwen3_vl.logits(params, config, hidden[:, :-1]))
  chosen = jnp.take_along_axis(logp, batch.tokens[:, 1:, None], axis=-1)[..., 0]
  scored = (batch.segments[:, :-1] > 0) & (batch.segments[:, 1:] > 0)
  return -jnp.sum(jnp.where(scored, chosen, 0.0)) / jnp.sum(scored)


def test_every_parameter_learns(reference, make_case):
  """Gradients reach every layer and every output of each parameter, and are finite with padding."""
  reference = reference("tiny")
  case = make_case(reference, ROWS["images and text"], "left")
  gradient = _gradient(reference.params, reference.config, case.batch, "none")
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    name = path_name(path)
    assert np.isfinite(leaf).all(), name
    if not name.endswith("embedding"):  # of which only the tokens and places that occur
      assert np.abs(leaf).max(axis=-1).min() > 0, name


SLOW_POLICIES = sorted(REMAT_POLICIES.keys() - {"none", "offload"})


@pytest.mark.parametrize(
  "policy",
  ["offload", *[pytest.param(policy, marks=pytest.mark.slow) for policy in SLOW_POLICIES]],
)
def test_rematerialized_gradients_are_the_same(reference, make_case, policy):
  reference = reference("tiny")
  case = make_case(reference, ROWS["images and text"], "left")
  kept = _gradient(reference.params, reference.config, case.batch, "none")
  again = _gradient(reference.params, reference.config, case.batch, policy)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, kept)


def test_unknown_remat_is_refused(reference, make_case):
  reference = reference("tiny")
  case = make_case(reference, ROWS["text only"])
  with pytest.raises(
    ValueError, match="remat is 'all'; choose one of 'offload', 'full', 'context'"
  ):
    qwen3_vl.forward(reference.params, reference.config, case.batch, remat="all")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_activations_take_the_dtype_of_the_parameters(reference, make_case, dtype):
  reference = reference("tiny")
  params = jax.tree.map(lambda x: jnp.asarray(x, dtype), reference.params)
  case = make_case(reference, ROWS["images and text"], "left")
  hidden = jax.eval_shape(
    lambda p: qwen3_vl.forward(p, reference.config, case.batch, "full"), params
  )
  logits, cache = jax.eval_shape(
    lambda p: qwen3_vl.prefill(p, reference.config, case.prompts), params
  )
  rows = len(case.prompts.tokens)
  cache = jax.eval_shape(lambda c: qwen3_vl.add_cache_block(c, 5, rows), cache)
  weights = jax.eval_shape(lambda p: qwen3_vl.decoding_params(p, reference.config), params)
  again = jax.eval_shape(
    lambda p, c: qwen3_vl.decode(p, reference.config, case.prompts.tokens[:, 0], c), weights, cache
  )
  assert (hidden.dtype, cache.blocks[-1].keys[0].dtype, logits.dtype) == (dtype, dtype, jnp.float32)
  assert again == (logits, cache)  # a loop can carry it


def test_bfloat16_stays_near_float32(reference, make_case):
  """Rounding only: well under a tenth of a standard deviation in the mean."""
  reference = reference("tiny")
  case = make_case(reference, ROWS["several images"])
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), reference.params)
  exact = _jitted_logits(reference.params, reference.config, case.batch)
  rounded = _jitted_logits(params, reference.config, case.batch)
  assert np.abs(np.asarray(rounded - exact))[case.real].mean() < 0.05


@pytest.mark.parametrize(
  ("preset", "count"), [("2b", 2_127_532_032), ("4b", 4_437_815_808), ("8b", 8_767_123_696)]
)
def test_published_sizes(preset, count):
  """Parameter counts of the published checkpoints (transformers' own, on the meta device)."""
  shapes = abstract_params(PRESETS[preset], jnp.bfloat16)
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


def test_tiny_stays_tiny():
  shapes = abstract_params(PRESETS["tiny"])
  assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) <= 2_500_000


def test_fresh_parameters_begin_near_chance(make_case, reference):
  """Trainable from scratch: no token is preferred much at first, and keys make a difference."""
  config = reference("tiny").config
  init = jax.jit(qwen3_vl.init_params, static_argnums=0)
  params = init(config, jax.random.key(0))
  case = make_case(reference("tiny"), ROWS["several images"])
  logits = np.asarray(_jitted_logits(params, config, case.batch))[case.real]
  assert 0.01 < logits.std() < 2
  largest = jax.tree.map(lambda a, b: np.abs(a - b).max(), params, init(config, jax.random.key(1)))
  assert largest["text"]["layers"]["mlp"]["up_proj"]["kernel"] > 0
