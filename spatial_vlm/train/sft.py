"""Supervised fine-tuning: masked token cross-entropy on the assistant's tokens.

  L(θ) = − 1/N · Σ_{b,t} m_{b,t} · log π_θ(y_{b,t} | y_{b,<t}, images_b),   N = Σ_{b,t} m_{b,t}

N counts the target tokens of the whole batch, over all micro-batches and devices, so the gradient does not depend
on how the batch is cut (sums before means).
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from spatial_vlm import metrics, sharding
from spatial_vlm.metrics import Sums
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.trainable import NOTHING, join
from spatial_vlm.objectives.cross_entropy import token_cross_entropy
from spatial_vlm.types import Batch, Params, TrainState


@dataclasses.dataclass(frozen=True)
class SftSettings:
  """What is compiled into the step. `micro_batches` must divide the rows of a batch; `chunk_tokens` bounds the
  logits held at once; `remat` names a policy of `model.stack`; `dtype` is that of the computation: parameters,
  gradients' sums and optimizer stay as they are."""

  micro_batches: int
  chunk_tokens: int
  remat: str
  dtype: str


def computed_in(dtype: str, params: Params) -> Params:
  """The parameters as the computation sees them; activations take their dtype. Kernels in int8 take that of their
  scales, layer by layer (`model.int8`)."""
  return jax.tree.map(lambda p: p if p.dtype == jnp.int8 else p.astype(dtype), params)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """A run that has made no update yet."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def sft_loss(
  params: Params, batch: Batch, model: ModelConfig, settings: SftSettings
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """Summed cross-entropy (nats) of the target tokens of `batch`, and their number."""
  params = computed_in(settings.dtype, params)
  hidden = qwen3_vl.forward(params, model, batch, settings.remat)
  unembedding = qwen3_vl.unembedding(params, model).T
  return token_cross_entropy(
    hidden, unembedding, batch.tokens, batch.targets, settings.chunk_tokens
  )


def cut_rows(batch, pieces: int):
  """Every leaf [B, …] as [pieces, B / pieces, …]: piece i holds rows i, i + n, i + 2n, …, so that rows which are
  sharded in blocks stay on their devices."""

  def cut(x):
    return jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0)

  return jax.tree.map(cut, batch)


def join_rows(pieces):
  """Undoes `cut_rows`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), pieces)


def accumulate(loss: Callable, params: Params, batch, micro_batches: int) -> tuple[Params, Sums]:
  """Gradient of Σ loss over the micro-batches of `batch`, and their added sums.

  `loss(params, micro_batch) -> (sum, Sums)`.
  """
  gradient = jax.grad(loss, has_aux=True)
  if micro_batches == 1:
    return gradient(params, batch)

  def body(carry, micro_batch):
    grads, sums = gradient(params, micro_batch)
    return (jax.tree.map(jnp.add, carry[0], grads), metrics.add(carry[1], sums)), None

  pieces = cut_rows(batch, micro_batches)
  shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], pieces))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  return jax.lax.scan(body, zeros, pieces)[0]


def mean_gradient(grads: Params, count: Int[Array, ""]) -> Params:
  """Summed gradient over the number of tokens of the whole batch; zero where there is none."""
  return jax.tree.map(lambda g: g / jnp.maximum(count, 1).astype(g.dtype), grads)


def apply_gradient(
  state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """The state after one update by the optimizer."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return TrainState(step=state.step + 1, params=params, opt_state=opt_state)


def laid_out(state, shardings: Callable):
  """The state over the mesh in use as `shardings(mesh, state)` says: where it lay before the update.

  Left to the compiler, it would lie otherwise after the first update of every start, and the next one be compiled
  anew: by another program than that of a run that goes on, which may round differently.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return state if mesh.empty else jax.lax.with_sharding_constraint(state, shardings(mesh, state))


@functools.partial(
  jax.jit, static_argnames=("model", "optimizer", "settings"), donate_argnames="state"
)
def sft_step(
  state: TrainState,
  batch: Batch,
  frozen: Params = NOTHING,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: SftSettings,
) -> tuple[TrainState, Sums]:
  """One update of the parameters in `state`, which are all but the `frozen` ones; sums: `loss` (nats over target
  tokens), `grad_norm`, `target_tokens`, and those of `padding`."""

  def loss(params, micro_batch):
    total, count = sft_loss(join(params, frozen), micro_batch, model, settings)
    return total, {"loss": (total, count)}

  grads, sums = accumulate(loss, state.params, batch, settings.micro_batches)
  grads = mean_gradient(grads, sums["loss"][1])
  one = jnp.ones((), jnp.int32)
  sums["grad_norm"] = (optax.tree.norm(grads), one)
  sums["target_tokens"] = (sums["loss"][1], one)
  state = laid_out(apply_gradient(state, grads, optimizer), sharding.state_shardings)
  return state, sums | padding(batch)


def padding(batch: Batch) -> Sums:
  """Padded slots and all slots: of tokens and, where there are pictures, of patches."""
  segments = {"token": batch.segments}
  if batch.vision is not None:
    segments["patch"] = batch.vision.segments
  return {
    f"input/{kind}_padding": (jnp.sum(of_kind == 0), jnp.full((), of_kind.size, jnp.int32))
    for kind, of_kind in segments.items()
  }


def sft_loop(
  state: TrainState, batches: Iterator[Batch], step: Callable, steps: int
) -> Iterator[tuple[TrainState, Sums]]:
  """Yields the state and the sums after each of at most `steps` updates."""
  for batch in itertools.islice(batches, steps):
    state, sums = step(state, batch)
    yield state, sums
