"""Cross-entropy of the next token, without ever holding the logits of a whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


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
  where they are.

  Raises ValueError for a chunk below 1.
  """
  positions = tokens.shape[1] - 1
  inputs = (hidden[:, :-1], tokens[:, 1:], targets[:, 1:])
  count = jnp.sum(targets[:, 1:], dtype=jnp.int32)
  if chunk >= positions:
    return _summed_loss(unembed, *inputs), count
  loss = jax.checkpoint(_summed_loss)

  def add(total, piece):
    return total + loss(unembed, *piece), None

  pieces = jax.tree.map(lambda x: cut(x, chunk), inputs)
  return jax.lax.scan(add, jnp.zeros((), jnp.float32), pieces)[0], count


def cut(x: Array, chunk: int) -> Array:
  """[B, T, …] -> [pieces, B, chunk, …], the last piece filled up with zeros.

  Raises ValueError for a chunk below 1.
  """
  if chunk < 1:
    raise ValueError(f"chunk is {chunk} positions; it must be at least 1 (T or more for one piece)")
  x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % chunk)] + [(0, 0)] * (x.ndim - 2))
  return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)


def _summed_loss(
  unembed: Float[Array, "D V"],
  hidden: Float[Array, "B C D"],
  tokens: Int[Array, "B C"],
  targets: Bool[Array, "B C"],
) -> Float[Array, ""]:
  logits = jnp.einsum("bcd,dv->bcv", hidden, unembed, preferred_element_type=jnp.float32)
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(targets, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0))
