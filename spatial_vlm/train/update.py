"""One update: gradients accumulated over micro-batches, divided once, applied by the optimizer."""

from collections.abc import Callable
from typing import Any, cast

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


def accumulate(gradient: Callable, params: Any, pieces) -> tuple[Any, Sums]:
  """Returns the added gradients and sums of micro-batches, computed in turn.

  Gradients are added in float32 or wider, whatever the types of `params`.

  Args:
    gradient: (params, micro-batch) -> (gradients, Sums), such as `jax.grad(loss, has_aux=True)`.
    pieces: the micro-batches along a new first axis, as `cut_rows` makes them.
  """

  def widened(params, piece):
    grads, sums = gradient(params, piece)
    return jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), grads), sums

  first = jax.tree.map(lambda x: x[0], pieces)
  if len(jax.tree.leaves(pieces)[0]) == 1:
    return widened(params, first)

  def body(carry, piece):
    grads, sums = widened(params, piece)
    return (jax.tree.map(jnp.add, carry[0], grads), metrics.add(carry[1], sums)), None

  shapes = jax.eval_shape(widened, params, first)
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
