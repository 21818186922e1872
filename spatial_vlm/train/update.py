"""One update: gradients accumulated over micro-batches, divided once, applied by the optimizer."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from spatial_vlm import metrics
from spatial_vlm.metrics import Sums
from spatial_vlm.types import Params, TrainState


def computed_in(dtype: str, params: Params) -> Params:
  """Casts the parameters to the computation's type, which activations then take.

  Int8 kernels stay; each layer dequantizes its own to the type of the scales (`parameters.int8`).
  """
  return jax.tree.map(lambda p: p if p.dtype == jnp.int8 else p.astype(dtype), params)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns the state of a run before its first update."""
  return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def cut_rows(batch, pieces: int):
  """Reshapes every leaf [B, …] to [pieces, B / pieces, …].

  Piece i holds rows i, i + n, i + 2n, …, so rows that are sharded in blocks stay on their devices.
  """

  def cut(x):
    return jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0)

  return jax.tree.map(cut, batch)


def join_rows(pieces):
  """Inverts `cut_rows`."""
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), pieces)


def accumulate(loss: Callable, params: Params, batch, micro_batches: int) -> tuple[Params, Sums]:
  """Returns the gradient of Σ loss over the micro-batches of `batch`, and their added sums.

  Args:
    loss: (params, micro_batch) -> (sum, Sums).
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
  """Divides the summed gradient by the number of tokens of the whole batch; zero tokens give zero."""
  return jax.tree.map(lambda g: g / jnp.maximum(count, 1).astype(g.dtype), grads)


def apply_gradient(
  state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state after one update by the optimizer."""
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = cast(Params, optax.apply_updates(state.params, updates))
  return TrainState(step=state.step + 1, params=params, opt_state=opt_state)


def constrain_state(state, shardings: Callable):
  """Constrains the state to `shardings(mesh, state)` of the mesh in use, its shardings before the update.

  Without this constraint XLA may choose another layout after the first update; the next step then recompiles into a
  program that may round differently from a resumed run's.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return state if mesh.empty else jax.lax.with_sharding_constraint(state, shardings(mesh, state))
