"""What each rematerialisation policy saves, exactly; and that it changes nothing but memory."""

import dataclasses
from functools import partial

import jax
import pytest
from jax import numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatial_vlm import sharding
from spatial_vlm.model import text, vision
from spatial_vlm.model.attention import plain_attention
from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.stack import REMAT_POLICIES
from spatial_vlm.types import Vision

TINY = PRESETS["tiny"]
B, T = 3, 20


@pytest.fixture
def one_kernel(monkeypatch):
  """The formula alone; otherwise residuals of the other platforms' kernels would be counted too."""
  for tower in (text, vision):
    monkeypatch.setattr(tower, "attention", plain_attention)


def run_text(policy, layers, h):
  rows = h.reshape(B, T, -1)
  positions = jnp.broadcast_to(jnp.arange(T)[None, :, None], (B, T, 3))
  segments = jnp.ones((B, T), jnp.int32)
  return text.run_layers(layers, TINY.text, rows, positions, segments, None, policy)[0]


def run_vision(policy, blocks, h):
  images = Vision(
    patches=jnp.zeros((B, T, TINY.vision.patch_dim)),
    segments=jnp.ones((B, T), jnp.int32),
    coords=jnp.broadcast_to(jnp.arange(2 * T).reshape(1, T, 2), (B, T, 2)),
    pos_index=jnp.zeros((B, T, 4), jnp.int32),
    pos_weight=jnp.zeros((B, T, 4)),
  )
  return vision._run_blocks(blocks, TINY.vision, h, images, policy)[0]


def arguments(run):
  key = jax.random.key(0)
  if run is run_text:
    layers, config = text.init_text(TINY.text, key, jnp.float32)["layers"], TINY.text
  else:
    layers, config = vision.init_vision(TINY.vision, key, jnp.float32)["blocks"], TINY.vision
  return layers, jnp.zeros((B * T, config.hidden_size))


def kept(run, policy):
  """Abstract arrays, one value or more for each token, that the forward pass hands to the backward pass."""
  forward = lambda *x: jax.vjp(partial(run, policy), *x)[1]  # noqa: E731
  arrays = jax.make_jaxpr(forward)(*jax.eval_shape(partial(arguments, run))).out_avals
  return [x for x in arrays if x.shape[1:2] == (B * T,) or x.shape[1:3] == (B, T)]


@pytest.mark.parametrize("run", [run_text, run_vision])
def test_policies_save_exactly_the_named_residuals(run, one_kernel):
  values = {policy: sum(leaf.size for leaf in kept(run, policy)) for policy in REMAT_POLICIES}
  if run is run_text:
    c, layers = TINY.text, TINY.text.num_hidden_layers
    heads, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    others = c.hidden_size + 2 * c.intermediate_size  # of attention's output, gate and up
  else:
    c, layers = TINY.vision, TINY.vision.depth
    heads = keys = c.num_heads * c.head_dim
    others = c.hidden_size + c.intermediate_size
  tokens = layers * B * T
  assert values["offload"] == values["full"]
  assert values["context"] - values["full"] == tokens * heads
  assert values["attention"] - values["context"] == tokens * (heads + 2 * keys)
  assert values["dots"] - values["attention"] == tokens * others
  assert values["none"] > values["dots"]


@pytest.mark.parametrize("run", [run_text, run_vision])
def test_offload_moves_the_layers_inputs_and_nothing_else(run):
  memories = {
    policy: [x.shape for x in kept(run, policy) if x.memory_space == jax.memory.Space.Host]
    for policy in REMAT_POLICIES
  }
  c = TINY.text if run is run_text else TINY.vision
  depth = c.num_hidden_layers if run is run_text else c.depth
  assert memories.pop("offload") == [(depth, B * T, c.hidden_size)]
  assert not any(memories.values())


@pytest.mark.tpu
def test_on_a_tpu_kernels_run_once_and_policies_cost_what_they_keep(v5e):
  """24 layers of width 256 over rows of 2,048 tokens, in bfloat16."""
  programs = {policy: compiled_for(v5e, policy) for policy in REMAT_POLICIES}
  kernels = {
    policy: program.as_text().count('custom_call_target="tpu_custom_call"')
    for policy, program in programs.items()
  }
  # forward, dq, dk and dv; with `full` a second forward. Loops that move something to the host are unrolled twice.
  assert kernels.pop("offload") == 2 * kernels.pop("full") == 8
  assert set(kernels.values()) == {3}
  memory = {policy: program.memory_analysis() for policy, program in programs.items()}
  inputs = 24 * 2 * 2048 * 256 * 2
  assert memory["offload"].host_temp_size_in_bytes == inputs
  on_device = [memory[policy].temp_size_in_bytes for policy in REMAT_POLICIES]
  assert on_device[0] < on_device[1] - 0.75 * inputs  # a few transfers are in flight
  assert on_device == sorted(on_device)


def compiled_for(devices, policy):
  """Gradients of a decoder's layers, two rows to each device."""
  config = dataclasses.replace(
    TINY.text,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=24,
    head_dim=128,
    mrope_section=(24, 20, 20),
  )
  mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 1}, devices)

  def argument(shape, dtype, *spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

  layers = jax.tree.map(
    lambda x: argument(x.shape, jnp.bfloat16),
    jax.eval_shape(lambda: text.init_text(config, jax.random.key(0), jnp.bfloat16)["layers"]),
  )
  rows = (
    argument((8, 2048, 256), jnp.bfloat16, "fsdp"),
    argument((8, 2048, 3), jnp.int32, "fsdp"),
    argument((8, 2048), jnp.int32, "fsdp"),
  )

  def loss(layers, h, positions, segments):
    h, _ = text.run_layers(layers, config, h, positions, segments, None, policy)
    return jnp.sum(jnp.sin(h.astype(jnp.float32)))

  with jax.set_mesh(mesh):
    return jax.jit(jax.grad(loss)).lower(layers, *rows).compile()
