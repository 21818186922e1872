"""Attention against an oracle, its kernels against the formula, and which of them each platform gets."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from attention_inputs import assert_same, inputs, with_gradients
from jax import numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatial_vlm import process_rows, sharding
from spatial_vlm.model import flash, qwen3_vl, text, vision
from spatial_vlm.model.attention import CacheBlock, cached_attention, plain_attention


@pytest.mark.parametrize("causal", [True, False])
def test_plain_attention_is_that_of_each_segment_alone(causal):
  q, k, v, segments, _ = inputs()
  found = jax.jit(plain_attention, static_argnums=4)(q, k, v, segments, causal)
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  B, T, N, H = q.shape
  for b, t, n in np.ndindex(B, T, N):
    seen = np.flatnonzero(segments[b] == segments[b, t])
    seen = seen[seen <= t] if causal else seen
    scores = k[b, n // 2, seen] @ q[b, t, n] / np.sqrt(H)
    weights = np.exp(scores - scores.max())
    expected = weights @ v[b, n // 2, seen] / weights.sum()
    np.testing.assert_allclose(found[b, t, n], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
  ("sizes", "causal"),
  [
    ({"H": 72, "N": 2, "K": 2}, False),  # vision heads
    ({"T": 128, "N": 4, "K": 2, "H": 128}, True),
    ({"T": 140, "N": 3, "K": 1}, True),
    pytest.param({"B": 1, "T": 1300, "N": 2, "K": 1}, True, marks=pytest.mark.slow),
    pytest.param({"B": 1, "T": 1300, "N": 1, "K": 1}, False, marks=pytest.mark.slow),
  ],
)
def test_splash_equals_the_formula(sizes, causal):
  """Values and gradients of the kernel's own program; padding rows too."""
  arrays = inputs(**sizes)
  splash = partial(flash.splash_attention, causal=causal, interpret=True)
  expected = jax.jit(partial(with_gradients, partial(plain_attention, causal=causal)))(*arrays)
  assert_same(jax.jit(partial(with_gradients, splash))(*arrays), expected)


@pytest.mark.parametrize("tokens", [1, 128, 129, 600, 900, 2048, 3840, 3968, 16384, 43000])
def test_blocks_waste_little(tokens):
  block = flash.block_size(tokens)
  assert block % flash.LANES == 0
  assert -tokens % block < max(flash.LANES, 256, tokens // 8)


FORMULA = partial(plain_attention, causal=True)
INTERPRETED = partial(flash.splash_attention, causal=True, interpret=True)


@pytest.mark.parametrize(
  ("shape", "rows", "kernel"),
  [
    ({"data": 2, "fsdp": 2, "tensor": 2}, 4, FORMULA),
    ({"data": 1, "fsdp": 2, "tensor": 4}, 4, INTERPRETED),  # 2 key-value heads for 4 devices
    ({"data": 2, "fsdp": 4, "tensor": 1}, 6, FORMULA),  # rows only over data
    ({"data": 1, "fsdp": 1, "tensor": 8}, 1, FORMULA),  # 4 heads, whole on each device
  ],
)
def test_over_a_mesh_nothing_changes(shape, rows, kernel):
  arrays = inputs(B=rows, T=48)
  expected = jax.jit(partial(with_gradients, FORMULA))(*arrays)
  with jax.set_mesh(sharding.make_mesh(shape)):
    found = jax.jit(partial(with_gradients, partial(flash.shard_mapped, kernel)))(*arrays)
  assert_same(jax.device_get(found), jax.device_get(expected))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_whole_model_by_kernels_over_a_mesh(reference, make_case, monkeypatch, remat):
  """Logits as transformers computes them, gradients as the formula's; both towers, in a loop over layers."""
  reference = reference("tiny")
  case = make_case(reference, [[4, (6, 10), 3, (8, 4), 12], [2, (4, 4), 9]], "left")

  def loss(params, batch):
    hidden = qwen3_vl.forward(params, reference.config, batch, remat)
    logits = qwen3_vl.logits(params, reference.config, hidden)
    return jnp.sum(jnp.where((batch.segments > 0)[..., None], jnp.sin(logits), 0.0)), logits

  expected, _ = jax.jit(jax.grad(loss, has_aux=True))(reference.params, case.batch)

  def attend(q, k, v, segments, causal):
    kernel = partial(flash.splash_attention, causal=causal, interpret=True)
    return flash.shard_mapped(kernel, q, k, v, segments)

  for tower in (text, vision):
    monkeypatch.setattr(tower, "attention", attend)
  mesh = sharding.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})
  with jax.set_mesh(mesh):
    params = jax.device_put(reference.params, sharding.param_shardings(mesh, reference.params))
    found, logits = jax.jit(jax.grad(lambda *inputs: loss(*inputs), has_aux=True))(
      params, process_rows.make_global_batch(mesh, case.batch)
    )
  with torch.no_grad():
    exact = reference.model(**case.hf).logits.numpy()
  assert np.abs(np.asarray(logits) - exact)[case.real].max() <= 1e-5

  def assert_near(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, float(np.abs(b).max())))

  jax.tree.map(assert_near, jax.device_get(found), jax.device_get(expected))


def test_each_device_computes_its_own_rows_and_heads():
  seen = []

  def kernel(q, k, v, segments):
    seen.append((q.shape, k.shape, v.shape, segments.shape))
    return q

  q, k, v, segments, _ = inputs(B=4, T=8, N=8, K=2, H=4)
  for shape in [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 4}]:
    with jax.set_mesh(sharding.make_mesh(shape)):
      jax.eval_shape(partial(flash.shard_mapped, kernel), q, k, v, segments)
  flash.shard_mapped(kernel, q, k, v, segments)
  assert seen == [
    ((1, 8, 4, 4), (1, 1, 8, 4), (1, 1, 8, 4), (1, 8)),
    ((2, 8, 2, 4), (2, 1, 8, 4), (2, 1, 8, 4), (2, 8)),
    ((4, 8, 8, 4), (4, 2, 8, 4), (4, 2, 8, 4), (4, 8)),
  ]


SPLASH = "tpu_custom_call"
CUDNN = "__cudnn$fmha"


@pytest.mark.parametrize(
  ("platform", "dtype", "expected"),
  [
    ("tpu", jnp.bfloat16, {SPLASH}),
    ("tpu", jnp.float32, {SPLASH}),
    ("cuda", jnp.bfloat16, {CUDNN}),
    ("cuda", jnp.float32, set()),
    ("cpu", jnp.bfloat16, set()),
  ],
)
def test_the_platform_that_is_compiled_for_chooses(monkeypatch, platform, dtype, expected):
  """Although all of them are lowered here, on a CPU."""
  monkeypatch.setattr(flash, "_cudnn_is_installed", lambda: True)
  monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
  arrays = inputs(B=2, T=40, H=72, dtype=dtype)
  attend = partial(flash.attention, causal=True)
  traced = jax.jit(partial(with_gradients, attend)).trace(*arrays)
  program = traced.lower(lowering_platforms=(platform,)).as_text()
  assert {call for call in (SPLASH, CUDNN) if call in program} == expected


def compiled_for(devices, shape, attend, B, T, N, K, H, causal):
  """Values and gradients for those devices, in bfloat16."""
  mesh = sharding.make_mesh(shape, devices)

  def argument(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

  by_token = argument((B, T, N, H), jnp.bfloat16, P(sharding.ROWS, None, "tensor"))
  by_head = argument((B, K, T, H), jnp.bfloat16, P(sharding.ROWS, "tensor"))
  segments = argument((B, T), jnp.int32, P(sharding.ROWS))
  function = jax.jit(partial(with_gradients, partial(attend, causal=causal)))
  with jax.set_mesh(mesh):
    return function.lower(by_token, by_head, by_head, segments, by_token).compile()


TEXT = {"B": 8, "T": 2048, "N": 32, "K": 8, "H": 128, "causal": True}
VISION = {"B": 4, "T": 4096, "N": 16, "K": 16, "H": 72, "causal": False}


@pytest.mark.tpu
@pytest.mark.parametrize(
  ("sizes", "shape"),
  [
    (TEXT, {"data": 1, "fsdp": 4, "tensor": 1}),
    (TEXT, {"data": 1, "fsdp": 2, "tensor": 2}),
    (VISION, {"data": 1, "fsdp": 4, "tensor": 1}),
    (TEXT | {"T": 3840, "B": 4}, {"data": 1, "fsdp": 4, "tensor": 1}),
    (TEXT | {"T": 16384, "B": 4}, {"data": 1, "fsdp": 4, "tensor": 1}),
  ],
)
def test_a_tpu_program_has_no_square_array(v5e, sizes, shape):
  """Three kernels (forward, dq, dk and dv), no collectives, no array of T × T values."""
  program = compiled_for(v5e, shape, flash.attention, **sizes)
  text = program.as_text()
  assert text.count(f'custom_call_target="{SPLASH}"') == 3
  assert f"{sizes['T']},{sizes['T']}]" not in text
  assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "permute"))


@pytest.mark.tpu
@pytest.mark.parametrize("sizes", [TEXT, VISION])
def test_splash_takes_a_tenth_of_the_memory(v5e, sizes):
  """Temporary memory of a chip: for the formula nearly all of it is T × T scores."""
  shape = {"data": 1, "fsdp": 4, "tensor": 1}
  splash, formula = (
    compiled_for(v5e, shape, attend, **sizes).memory_analysis().temp_size_in_bytes
    for attend in (flash.attention, plain_attention)
  )
  assert splash * 10 < formula


def test_the_last_queries_alone_get_the_same_as_with_all_others():
  """By the formula, and by a kernel that takes as many queries as keys."""
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=shape).astype(np.float32) for shape in ((2, 9, 4, 8), *[(2, 2, 9, 8)] * 2)
  )
  segments = np.array([[0, 1, 1, 1, 0, 0, 1, 1, 1], [1] * 9])
  expected = FORMULA(q, k, v, segments)[:, 6:]
  np.testing.assert_allclose(FORMULA(q[:, 6:], k, v, segments), expected, atol=1e-6)
  found = flash.last_queries(plain_attention, jnp.asarray(q[:, 6:]), k, v, segments, True)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_blocks_of_a_bfloat16_cache_are_summed_in_float32():
  """Only the result is rounded: it is the nearest bfloat16 of the exact sum over all blocks."""
  rng, bf16 = np.random.default_rng(0), jnp.bfloat16
  B, K, G, H, S = 4, 2, 2, 64, 16

  def drawn(*shape):
    return jnp.asarray(rng.normal(size=shape), bf16)

  blocks = [
    CacheBlock(drawn(B, K, H, S) * 0, drawn(B, K, S, H), jnp.ones((B, S), bool)) for _ in range(4)
  ]
  k, v = drawn(B, K, 1, H) * 0, drawn(B, K, 1, H)
  found = cached_attention(drawn(B, 1, K * G, H), k, v, blocks)
  weight = float(bf16(1 / 65))
  values = np.concatenate([np.asarray(x, np.float64) for x in (v, *(b.values for b in blocks))], 2)
  exact = np.repeat(weight * values.sum(axis=2), G, axis=1)[:, None]
  same = np.asarray(found) == np.asarray(jnp.asarray(exact, bf16))
  assert same.mean() > 0.99
