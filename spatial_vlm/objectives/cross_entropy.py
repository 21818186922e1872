"""Cross-entropy of the next token; the logits of a whole batch are never in memory together."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.objectives.vocabulary import (
  Axes,
  log_partition,
  sharded_scores,
  shifted,
  target_values,
)

CHUNKS = "chunks"
"""Name scope of the loops over pieces of rows; `planning` finds them in a compiled program by it."""


def token_cross_entropy(
  hidden: Float[Array, "B T D"],
  unembed: Float[Array, "D V"],
  tokens: Int[Array, "B T"],
  targets: Bool[Array, "B T"],
  chunk: int,
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """Σ_{b,t} m_{b,t} · −log softmax(h_{b,t−1} W)[y_{b,t}], and Σ m; their quotient is the loss.

  Token t is predicted from the hidden state of token t−1, so position 0 is never a target. Logits
  and sums are float32 whatever the dtype of `hidden`. Logits are made for `chunk` positions of
  every row at a time (B × chunk × V of them) and made again in the backward pass; a chunk that
  covers the row is the plain formula. Chunks run along T, so that rows sharded over devices stay
  where they are: each device goes through the chunks of its own rows, with `unembed` gathered once.

  Raises ValueError for a chunk below 1.
  """
  inputs = (hidden[:, :-1], tokens[:, 1:], targets[:, 1:])
  count = jnp.sum(targets[:, 1:], dtype=jnp.int32)
  losses = sharded_scores(functools.partial(_loss_of_rows, chunk=chunk), (unembed,), *inputs)
  return jnp.sum(losses), count


def _loss_of_rows(
  unembed: Float[Array, "D V"],
  hidden: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
  targets: Bool[Array, "B T"],
  chunk: int,
  axes: Axes,
) -> Float[Array, "B"]:
  inputs = (hidden, tokens, targets)
  if chunk >= tokens.shape[1]:
    return _loss(unembed, *inputs, axes)
  loss = jax.checkpoint(lambda piece: _loss(unembed, *piece, axes=axes))
  with jax.named_scope(CHUNKS):
    return jnp.sum(jax.lax.map(loss, jax.tree.map(lambda x: cut(x, chunk), inputs)), axis=0)


def cut(x: Array, chunk: int) -> Array:
  """[B, T, …] -> [pieces, B, chunk, …], the last piece filled up with zeros.

  Raises ValueError for a chunk below 1.
  """
  if chunk < 1:
    raise ValueError(f"chunk is {chunk} positions; it must be at least 1 (T or more for one piece)")
  x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _loss(
  unembed: Float[Array, "D V"],
  hidden: Float[Array, "B C D"],
  tokens: Int[Array, "B C"],
  targets: Bool[Array, "B C"],
  axes: Axes,
) -> Float[Array, "B"]:
  logits = jnp.einsum("bcd,dv->bcv", hidden, unembed, preferred_element_type=jnp.float32)
  scores = shifted(logits, axes)
  losses = log_partition(scores, axes) - target_values(scores, tokens, axes)
  return jnp.sum(jnp.where(targets, losses, 0.0), axis=-1)
