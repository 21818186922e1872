"""Operations counted in traced programs: against formulas, and against XLA where it can count."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from spatial_vlm import sharding
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import PRESETS, ModelConfig
from spatial_vlm.planning.flops import traced_flops
from spatial_vlm.planning.inputs import batch_shapes
from spatial_vlm.processor.chat import Size
from spatial_vlm.train.sft import SftSettings, sft_loss


def count(function, *shapes, trip_count=1):
  arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return traced_flops(jax.make_jaxpr(function)(*arrays).jaxpr, trip_count)


def test_product_of_matrices():
  assert count(lambda a, b: jnp.sin(a @ b), (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (4, 3, 5), (4, 5, 7)) == 8 * 3 * 5 * 7


def test_loops_branches_and_devices():
  product = 2 * 4**3

  def scanned(a, b):
    return jax.lax.scan(lambda x, _: (x @ b, None), a, None, length=6)[0]

  def until(a, b):
    return jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ b, a)

  def either(a, b):
    return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a @ b @ b)

  def each(a, b):
    return jax.shard_map(jnp.matmul, in_specs=(P("fsdp"), P()), out_specs=P("fsdp"))(a, b)

  square = (4, 4)
  assert count(scanned, square, square) == 6 * product
  assert count(until, square, square, trip_count=9) == 9 * product
  assert count(either, square, square) == 2 * product
  with jax.set_mesh(sharding.make_mesh({"fsdp": 4, "tensor": 2})):
    assert count(each, square, square) == 2 * product  # two devices repeat the same work


def test_recomputation_counts():
  def f(w, x):
    return jnp.sum(jnp.sin(x @ w))

  plain = count(jax.grad(f), (4, 4), (4, 4))
  assert plain == 2 * 2 * 4**3  # forward, and the gradient of the weights
  assert count(jax.grad(jax.checkpoint(f)), (4, 4), (4, 4)) == plain + 2 * 4**3


def forward_flops(
  model: ModelConfig, rows: int, tokens: int, patches: int, scored: int | None = None
) -> float:
  """Returns the operations of a forward pass over `rows` of `tokens` and `patches`, with attention over all pairs.

  Text, per layer: 2·T·(D·(2N + 2K)·H + 3·D·F) for its kernels and 4·T²·N·H for attention; vision in the same way, over
  M patches; the mergers; and 2·S·D·V for the logits of `scored` tokens (all of them, unless given).
  """
  return rows * (
    _text(model, tokens)
    + _vision(model, patches)
    + 2 * (tokens if scored is None else scored) * model.text.hidden_size * model.text.vocab_size
  )


def _text(model: ModelConfig, T: int) -> float:
  text = model.text
  D, F, H = text.hidden_size, text.intermediate_size, text.head_dim
  N, K = text.num_attention_heads, text.num_key_value_heads
  kernels = D * (2 * N + 2 * K) * H + 3 * D * F
  return text.num_hidden_layers * (2 * T * kernels + 4 * T * T * N * H)


def _vision(model: ModelConfig, M: int) -> float:
  vision = model.vision
  D, F = vision.hidden_size, vision.intermediate_size
  merged = D * vision.merge_unit
  mergers = 1 + len(vision.deepstack_visual_indexes)
  kernels = vision.depth * (4 * D * D + 2 * D * F) + vision.patch_dim * D
  merge = mergers * (merged * merged + merged * vision.out_hidden_size) / vision.merge_unit
  return 2 * M * (kernels + merge) + vision.depth * 4 * M * M * D


@pytest.mark.parametrize("size", ["tiny", "8b"])
def test_a_forward_pass_is_the_formula(size):
  model = PRESETS[size]
  rows, shape = 2, Size(64, 128)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  batch = batch_shapes(mesh, model, rows, shape, "float32")
  params = jax.eval_shape(lambda k: qwen3_vl.init_params(model, k), jax.random.key(0))

  def logits(params, batch):
    return qwen3_vl.logits(params, model, qwen3_vl.forward(params, model, batch))

  found = traced_flops(jax.make_jaxpr(logits)(params, batch).jaxpr, platform="cpu")
  np.testing.assert_allclose(found, forward_flops(model, rows, *shape), rtol=1e-3)


def test_a_step_is_three_forward_passes_and_more_with_rematerialisation():
  model = PRESETS["8b"]
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  batch = batch_shapes(mesh, model, 1, Size(256, 512), "float32")
  params = jax.eval_shape(lambda k: qwen3_vl.init_params(model, k), jax.random.key(0))
  settings = SftSettings(micro_batches=1, chunk_tokens=1024, remat="none", dtype="float32")

  def step(settings):
    gradient = jax.grad(lambda p, b: sft_loss(p, b, model, settings)[0])
    return traced_flops(jax.make_jaxpr(gradient)(params, batch).jaxpr, platform="cpu")

  plain, full = step(settings), step(dataclasses.replace(settings, remat="full"))
  forward = forward_flops(model, 1, 256, 512)
  np.testing.assert_allclose(plain, 3 * forward, rtol=0.02)
  np.testing.assert_allclose(full, 4 * forward, rtol=0.1)


def test_xla_counts_the_same_where_there_is_no_loop():
  """XLA's count includes other operations than matrix products, and counts the body of a loop once."""

  def layer(x, w, v):
    return jax.nn.silu(x @ w) @ v

  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 256), (256, 512), (512, 256))]
  lowered = jax.jit(layer).lower(*shapes)
  found = traced_flops(jax.make_jaxpr(layer)(*shapes).jaxpr)
  np.testing.assert_allclose(lowered.compile().cost_analysis()["flops"], found, rtol=0.02)

  def looped(x, w, v):
    return jax.lax.scan(lambda x, _: (layer(x, w, v), None), x, None, length=8)[0]

  ours = traced_flops(jax.make_jaxpr(looped)(*shapes).jaxpr)
  theirs = jax.jit(looped).lower(*shapes).compile().cost_analysis()["flops"]
  assert ours == 8 * found and theirs < 2 * found
