"""Log-probabilities of given tokens under the distribution that the sampler draws from.

Sampler and trainer must speak of the same distribution, or the ratio π_θ / π_old is biased: both
take the softmax over the allowed vocabulary only (`ban`), and at the same temperature.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.objectives.cross_entropy import CHUNKS, cut
from spatial_vlm.objectives.vocabulary import (
  Axes,
  log_partition,
  sharded_scores,
  shifted,
  target_values,
)


def ban(
  logits: Float[Array, "... V"], forbidden_tokens: Bool[Array | np.ndarray, "V"]
) -> Float[Array, "... V"]:
  """Logits with −inf at ids that are never sampled (padding, images, …)."""
  return jnp.where(forbidden_tokens, -jnp.inf, logits)


def token_logprobs(
  hidden: Float[Array, "B T D"],
  unembed: Float[Array, "D V"],
  tokens: Int[Array, "B T"],
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  temperature: float = 1.0,
  chunk: int | None = None,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Log π(y_t | y_<t) and the entropy (nats) of π(· | y_<t), for π = softmax(h_{t−1} W / τ).

  The softmax runs over allowed ids at `temperature` τ. Token t is predicted from the hidden state
  of token t−1; position 0 has none and is 0 in both results. To score an answer only, pass hidden
  states and tokens from the last token of the prompt on. A banned token (padding) has
  log-probability −inf: mask it with `jnp.where` before any arithmetic. Results are float32; logits
  are made for `chunk` positions at a time (None: all at once) and again in the backward pass.

  Raises ValueError for a temperature of 0 or less (greedy choice has no density), or a chunk
  below 1.
  """
  if temperature <= 0:
    raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
  score = functools.partial(_logprobs_of_rows, temperature=temperature, chunk=chunk)
  scores = sharded_scores(score, (unembed, forbidden_tokens), hidden[:, :-1], tokens[:, 1:])
  logp, entropy = (jnp.pad(x, ((0, 0), (1, 0))) for x in scores)
  return logp, entropy


def _logprobs_of_rows(
  unembed: Float[Array, "D V"],
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  hidden: Float[Array, "B T D"],
  tokens: Int[Array, "B T"],
  temperature: float,
  chunk: int | None,
  axes: Axes,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  rows, positions = tokens.shape
  if chunk is None or chunk >= positions:
    return _logprobs(unembed, forbidden_tokens, hidden, tokens, temperature, axes)
  score = jax.checkpoint(
    lambda piece: _logprobs(unembed, forbidden_tokens, *piece, temperature=temperature, axes=axes)
  )
  with jax.named_scope(CHUNKS):
    pieces = jax.lax.map(score, jax.tree.map(lambda x: cut(x, chunk), (hidden, tokens)))
  logp, entropy = (jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :positions] for x in pieces)
  return logp, entropy


def _logprobs(
  unembed: Float[Array, "D V"],
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  hidden: Float[Array, "B C D"],
  tokens: Int[Array, "B C"],
  temperature: float,
  axes: Axes,
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
  logits = jnp.einsum("bcd,dv->bcv", hidden, unembed, preferred_element_type=jnp.float32)
  scores = shifted(ban(logits / temperature, forbidden_tokens), axes)
  logp = scores - log_partition(scores, axes)[..., None]
  # p · log p → 0 as p → 0, but 0 · −inf is NaN, in the value as in the gradient.
  entropy = -jnp.sum(jnp.exp(logp) * jnp.where(forbidden_tokens, 0.0, logp), axis=-1)
  return target_values(logp, tokens, axes), jax.lax.psum(entropy, axes)
