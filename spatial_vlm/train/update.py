"""One update: gradients accumulated over micro-batches, divided once, applied by the optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from spatial_vlm import metrics
from spatial_vlm.metrics import Sums
from spatial_vlm.types import Params, TrainState


def computed_in(dtype: str, params: Params) -> Params:
  """The parameters as the computation sees them; activations take their dtype. Kernels in int8 take that of their
  scales, layer by layer (`parameters.int8`)."""
  return jax.tree.map(lambda p: p if p.dtype == jnp.int8 else p.astype(dtype), params)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """A run that has made no update yet."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


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


def constrain_state(state, shardings: Callable):
  """The state over the mesh in use as `shardings(mesh, state)` says: where it lay before the update.

  Left to the compiler, it would lie otherwise after the first update of every start, and the next one be compiled
  anew: by another program than that of a run that goes on, which may round differently.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return state if mesh.empty else jax.lax.with_sharding_constraint(state, shardings(mesh, state))
