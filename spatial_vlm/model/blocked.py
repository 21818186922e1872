"""Attention by blocks of queries: no array of T × T, forward or backward.

It computes `attention.plain_attention`, on CPUs and for long rows on platforms without a kernel. The forward pass keeps
the logarithm of each query's normaliser, from which the backward pass computes the weights again (FlashAttention-2,
arXiv 2307.08691, Alg. 1 and 2, with all keys in one block):

  forward    S = q kᵀ / √H    L = log Σ_s exp S    O = exp(S − L) v
  backward   P = exp(S − L)   D = Σ_h dO ∘ O   dS = P ∘ (dO vᵀ − D)   dv = Pᵀ dO   dk = dSᵀ q / √H   dq = dS k / √H
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.attention import by_key_value_head, by_token
from spatial_vlm.model.stack import CONTEXT

BLOCK = 64
"""Queries of a block."""
SPANS = 8
"""Most spans of a row; more would make programs larger and save few products."""
OUTSIDE = -1
"""Segment of the tokens that fill the last block."""
SCORES_BYTES = 2**20
"""Size of a block's scores, which then stay in the cache of a core. Those of one row may be larger."""


class Span(NamedTuple):
  """Neighbouring blocks, whose queries see the same keys."""

  first: int
  """First query."""
  blocks: int
  block: int
  """Queries of each block."""
  keys: int
  """The queries see none after the first so many."""


def spans(queries: int, keys: int, causal: bool) -> list[Span]:
  """Returns the spans of a row whose queries, a multiple of BLOCK or few, are the last of its tokens.

  >>> spans(100, 100, causal=True)
  [Span(first=0, blocks=1, block=64, keys=64), Span(first=64, blocks=1, block=36, keys=100)]
  """
  size = BLOCK * -(-queries // (BLOCK * SPANS))
  starts = range(0, queries, size)
  lengths = [min(size, queries - first) for first in starts]
  before = keys - queries
  return [
    Span(
      first,
      blocks := -(-length // BLOCK),
      length // blocks,
      before + first + length if causal else keys,
    )
    for first, length in zip(starts, lengths, strict=True)
  ]


def blocked_attention(
  q: Float[Array, "B T N H"],
  k: Float[Array, "B K U H"],
  v: Float[Array, "B K U H"],
  segments: Int[Array, "B U"],
  causal: bool,
) -> Float[Array, "B T N H"]:
  """Computes `plain_attention`; queries are those of the last T of U tokens."""
  T = q.shape[1]
  end = -T % BLOCK if T > BLOCK * SPANS else 0

  def padded(x, axis, value=0):
    return jnp.pad(x, [(0, end * (a == axis)) for a in range(x.ndim)], constant_values=value)

  # Added tokens are a segment of their own: no token attends to them.
  q, k, v, segments = padded(q, 1), padded(k, 2), padded(v, 2), padded(segments, 1, OUTSIDE)
  return _attention(q, k, v, segments, causal)[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, segments, causal):
  return _forward(q, k, v, segments, causal)[0]


def _forward(q, k, v, segments, causal):
  """Returns O, and what the backward pass needs."""
  mixed, log_normaliser = _over_rows(
    functools.partial(_forward_rows, causal=causal), q, k, v, segments
  )
  mixed = checkpoint_name(mixed, CONTEXT)
  return mixed, (q, k, v, segments, mixed, checkpoint_name(log_normaliser, CONTEXT))


def _backward(causal, kept, d_mixed):
  of_rows = functools.partial(_backward_rows, causal=causal)
  return *_over_rows(of_rows, *kept, d_mixed), None


_attention.defvjp(_forward, _backward)


def _over_rows(function: Callable[..., Any], q: Array, k: Array, *others: Array) -> Any:
  """Calls `function` on as many rows at a time as SCORES_BYTES allows."""
  B, T, N, _ = q.shape
  most = max(1, SCORES_BYTES // (4 * N * min(T, BLOCK) * k.shape[2]))
  rows = max(size for size in range(1, min(most, B) + 1) if B % size == 0)
  if rows == B:
    return function(q, k, *others)
  arrays = [x.reshape(B // rows, rows, *x.shape[1:]) for x in (q, k, *others)]
  results = jax.lax.map(lambda arrays: function(*arrays), arrays)
  return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), results)


def _forward_rows(
  q: Float[Array, "R T N H"],
  k: Float[Array, "R K U H"],
  v: Float[Array, "R K U H"],
  segments: Int[Array, "R U"],
  causal: bool,
) -> tuple[Float[Array, "R T N H"], Float[Array, "R K G T"]]:
  """Returns O and L."""
  T, U = q.shape[1], k.shape[2]
  grouped = by_key_value_head(q * q.shape[-1] ** -0.5, k)

  def of_span(span: Span):
    keys, values = k[:, :, : span.keys], v[:, :, : span.keys]

    def of_block(_, start):
      query = _block(grouped, span, start, 3)
      own = _block(segments[:, U - T :], span, start, 1)
      query, own, of_keys = materialized((query, own, segments[:, : span.keys]), segments)
      seen = _seen(own, of_keys, U - T + start, causal)
      scores = _scores(query, keys)
      scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
      top = jnp.max(scores, axis=-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = jnp.sum(weights, axis=-1, keepdims=True)
      mixed = _mixed(weights.astype(v.dtype), values) / total
      return None, (mixed.astype(v.dtype), (top + jnp.log(total))[..., 0])

    return jax.lax.scan(of_block, None, _starts(span))[1]

  mixed, log_normaliser = zip(*map(of_span, spans(T, U, causal)), strict=True)
  return by_token(_joined(mixed, 3)), _joined(log_normaliser, 3)


def _backward_rows(
  q: Float[Array, "R T N H"],
  k: Float[Array, "R K U H"],
  v: Float[Array, "R K U H"],
  segments: Int[Array, "R U"],
  mixed: Float[Array, "R T N H"],
  log_normaliser: Float[Array, "R K G T"],
  d_mixed: Float[Array, "R T N H"],
  causal: bool,
) -> tuple[Float[Array, "R T N H"], Float[Array, "R K U H"], Float[Array, "R K U H"]]:
  """Returns the gradients of q, k and v."""
  T, U = q.shape[1], k.shape[2]
  scale = q.shape[-1] ** -0.5
  grouped = by_key_value_head(q * scale, k)
  d_grouped = by_key_value_head(d_mixed, k)
  inner = jnp.sum(d_mixed.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1, keepdims=True)
  inner = by_key_value_head(inner, k)[..., 0]
  dk, dv = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  dq = []
  for span in spans(T, U, causal):
    keys, values = k[:, :, : span.keys], v[:, :, : span.keys]

    def body(sums, start, span=span, keys=keys, values=values):
      of_block = [_block(x, span, start, 3) for x in (grouped, d_grouped, log_normaliser, inner)]
      own = _block(segments[:, U - T :], span, start, 1)
      of_block, own, of_keys = materialized((of_block, own, segments[:, : span.keys]), segments)
      query, d_out, of_query, of_inner = of_block
      seen = _seen(own, of_keys, U - T + start, causal)
      scores = _scores(query, keys)
      weights = jnp.where(seen, jnp.exp(scores - of_query[..., None]), 0.0)
      d_weights = _scores(d_out, values)
      d_scores = (weights * (d_weights - of_inner[..., None])).astype(q.dtype)
      dk, dv = sums
      dk += _mixed_queries(d_scores, query)
      dv += _mixed_queries(weights.astype(q.dtype), d_out)
      return (dk, dv), _mixed(d_scores, keys) * scale

    zeros = (jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32))
    (dk_span, dv_span), dq_span = jax.lax.scan(body, zeros, _starts(span))
    dk, dv = dk.at[:, :, : span.keys].add(dk_span), dv.at[:, :, : span.keys].add(dv_span)
    dq.append(dq_span)
  return by_token(_joined(dq, 3)).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _starts(span: Span) -> Int[Array, "blocks"]:
  return span.first + span.block * jnp.arange(span.blocks)


def _block(x: Array, span: Span, start: Int[Array, ""], axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, span.block, axis)


def _joined(blocks: Sequence[Array], axis: int) -> Array:
  """Joins the blocks [blocks R …] of all spans along `axis` of a block."""
  spans_of = [
    jnp.moveaxis(x, 0, axis).reshape(*x.shape[1 : axis + 1], -1, *x.shape[axis + 2 :])
    for x in blocks
  ]
  return jnp.concatenate(spans_of, axis)


def _scores(x: Float[Array, "R K G S H"], keys: Float[Array, "R K U H"]) -> Float[Array, "R K G S U"]:
  return _product("rkqh,rksh->rkqs", _flat(x), keys).reshape(*x.shape[:4], -1)


def _mixed(
  weights: Float[Array, "R K G S U"], values: Float[Array, "R K U H"]
) -> Float[Array, "R K G S H"]:
  return _product("rkqs,rksh->rkqh", _flat(weights), values).reshape(*weights.shape[:4], -1)


def _mixed_queries(
  weights: Float[Array, "R K G S U"], x: Float[Array, "R K G S H"]
) -> Float[Array, "R K U H"]:
  return _product("rkqs,rkqh->rksh", _flat(weights), _flat(x))


def _flat(x: Float[Array, "R K G S X"]) -> Float[Array, "R K GS X"]:
  """Joins the queries of all heads that share keys: products of matrices with two such axes are slower."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _product(form: str, a: Array, b: Array) -> Array:
  return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)


def _seen(
  of_query: Int[Array, "R S"], of_key: Int[Array, "R U"], first: Int[Array, ""], causal: bool
) -> Bool[Array, "R 1 1 S U"]:
  """Returns the part of `attention_mask` of queries that begin at token `first`."""
  seen = of_query[:, :, None] == of_key[:, None]
  if causal:
    seen &= first + jnp.arange(of_query.shape[1])[:, None] >= jnp.arange(of_key.shape[1])
  return seen[:, None, None]


def materialized(arrays: Sequence[Array], segments: Int[Array, "R U"]) -> Sequence[Array]:
  """Returns the arrays themselves, computed before what reads them.

  XLA fuses a slice at a position that is known at run time into the element-wise loops that read it, and these loops
  are then not vectorized: on CPUs an exponential takes six times as long. It does not fuse a branch, which is always
  the first one here.
  """
  always = segments[0, 0] >= OUTSIDE
  return jax.lax.cond(always, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), arrays)
