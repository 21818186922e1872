"""Attention by blocks of queries: no array of T × T, forward or backward.

It computes `attention.plain_attention`, on CPUs, and for the text encoder on platforms without a kernel. The forward
pass keeps the logarithm of each query's normaliser, from which the backward pass computes the weights again
(FlashAttention-2, arXiv 2307.08691, Alg. 1 and 2, with all keys in one block):

  forward    S = q kᵀ / √H    L = log Σ_s exp S    O = exp(S − L) v
  backward   P = exp(S − L)   D = Σ_h dO ∘ O   dS = P ∘ (dO vᵀ − D)   dv = Pᵀ dO   dk = dSᵀ q / √H   dq = dS k / √H
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
from jax import numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.attention import by_key_value_head, by_token, scaled_queries
from spatial_vlm.model.stack import CONTEXT
from spatial_vlm.types import Pytree

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
  rows = Rows(padded(q, 1), padded(k, 2), padded(v, 2), padded(segments, 1, OUTSIDE))
  return _attention(rows, causal)[:, :T]


@flax.struct.dataclass
class Rows(Pytree):
  """Queries of the last T of U tokens, keys and values."""

  q: Float[Array, "B T N H"]
  k: Float[Array, "B K U H"]
  v: Float[Array, "B K U H"]
  segments: Int[Array, "B U"]


@flax.struct.dataclass
class Mixed(Pytree):
  """Results of the forward pass: O and L."""

  mixed: Float[Array, "B T N H"]
  log_normaliser: Float[Array, "B K G T"]


def _result(rows: Rows, causal: bool) -> Float[Array, "B T N H"]:
  return _over_rows(_forward, causal, rows).mixed


def _keep(rows, causal):
  kept = jax.tree.map(
    functools.partial(checkpoint_name, name=CONTEXT), _over_rows(_forward, causal, rows)
  )
  return kept.mixed, (rows, kept)


def _gradients(causal, kept, d_mixed):
  dq, dk, dv = _over_rows(_backward, causal, *kept, d_mixed)
  return (kept[0].replace(q=dq, k=dk, v=dv, segments=None),)


_attention = jax.custom_vjp(_result, nondiff_argnums=(1,))
_attention.defvjp(_keep, _gradients)


def _over_rows(function: Callable[..., Any], causal: bool, rows: Rows, *others: Any) -> Any:
  """Calls `function` on as many rows at a time as SCORES_BYTES allows."""
  B, T, N, _ = rows.q.shape
  most = max(1, SCORES_BYTES // (4 * N * min(T, BLOCK) * rows.k.shape[2]))
  at_once = max(size for size in range(1, min(most, B) + 1) if B % size == 0)
  if at_once == B:
    return function(rows, *others, causal=causal)
  parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), (rows, *others))
  results = jax.lax.map(lambda arrays: function(*arrays, causal=causal), parts)
  return jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), results)


def _forward(rows: Rows, causal: bool) -> Mixed:
  T, U = rows.q.shape[1], rows.k.shape[2]
  queries = scaled_queries(rows.q, rows.k)
  mixed, log_normalisers = [], []
  for span in spans(T, U, causal):
    keys, values = rows.k[:, :, : span.keys], rows.v[:, :, : span.keys]

    def of_block(_, start, span=span, keys=keys, values=values):
      (query,), seen = _block((queries,), rows.segments, T, span, start, causal)
      scores = _scores(query, keys)
      scores = jnp.where(seen, scores, jnp.finfo(scores.dtype).min)
      top = jnp.max(scores, axis=-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = jnp.sum(weights, axis=-1, keepdims=True)
      of_values = _of_values(weights.astype(values.dtype), values) / total
      return None, (of_values.astype(values.dtype), (top + jnp.log(total))[..., 0])

    _, results = jax.lax.scan(of_block, None, _starts(span))
    mixed.append(results[0])
    log_normalisers.append(results[1])
  return Mixed(by_token(_joined(mixed)), _joined(log_normalisers))


def _backward(
  rows: Rows, kept: Mixed, d_mixed: Float[Array, "B T N H"], causal: bool
) -> tuple[Float[Array, "B T N H"], Float[Array, "B K U H"], Float[Array, "B K U H"]]:
  """Returns the gradients of q, k and v."""
  T, U = rows.q.shape[1], rows.k.shape[2]
  scale, dtype = rows.q.shape[-1] ** -0.5, rows.q.dtype
  inner = jnp.sum(d_mixed.astype(jnp.float32) * kept.mixed.astype(jnp.float32), -1, keepdims=True)
  of_queries = (
    scaled_queries(rows.q, rows.k),
    by_key_value_head(d_mixed, rows.k),
    by_key_value_head(inner, rows.k),
    kept.log_normaliser[..., None],
  )
  dk, dv = (jnp.zeros(x.shape, jnp.float32) for x in (rows.k, rows.v))
  dq = []
  for span in spans(T, U, causal):
    keys, values = rows.k[:, :, : span.keys], rows.v[:, :, : span.keys]

    def of_block(sums, start, span=span, keys=keys, values=values):
      arrays, seen = _block(of_queries, rows.segments, T, span, start, causal)
      query, d_out, inner, log_normaliser = arrays
      weights = jnp.where(seen, jnp.exp(_scores(query, keys) - log_normaliser), 0.0)
      d_scores = (weights * (_scores(d_out, values) - inner)).astype(dtype)
      dk, dv = sums
      dk += _of_queries(d_scores, query)
      dv += _of_queries(weights.astype(dtype), d_out)
      return (dk, dv), _of_values(d_scores, keys) * scale

    seen_by_span = (Ellipsis, slice(span.keys), slice(None))
    sums = dk[seen_by_span], dv[seen_by_span]
    (dk_seen, dv_seen), dq_span = jax.lax.scan(of_block, sums, _starts(span))
    dk, dv = dk.at[seen_by_span].set(dk_seen), dv.at[seen_by_span].set(dv_seen)
    dq.append(dq_span)
  return by_token(_joined(dq)).astype(dtype), dk.astype(rows.k.dtype), dv.astype(rows.v.dtype)


def _starts(span: Span) -> Int[Array, "blocks"]:
  return span.first + span.block * jnp.arange(span.blocks)


def _block(
  arrays: tuple[Float[Array, "B K G T _"], ...],
  segments: Int[Array, "B U"],
  queries: int,
  span: Span,
  start: Int[Array, ""],
  causal: bool,
) -> tuple[tuple[Float[Array, "B K G S _"], ...], Bool[Array, "B 1 1 S keys"]]:
  """Returns the parts of a block's queries, and `attention_mask` of its queries and the span's keys."""
  before = segments.shape[1] - queries
  parts = tuple(jax.lax.dynamic_slice_in_dim(x, start, span.block, 3) for x in arrays)
  own = jax.lax.dynamic_slice_in_dim(segments, before + start, span.block, 1)
  parts, own, of_keys = _materialized((parts, own, segments[:, : span.keys]), segments)
  seen = own[:, :, None] == of_keys[:, None]
  if causal:
    tokens = before + start + jnp.arange(span.block)
    seen &= (tokens[:, None] >= jnp.arange(span.keys)[None])[None]
  return parts, seen[:, None, None]


def _materialized(arrays: Any, segments: Int[Array, "B U"]) -> Any:
  """Returns the arrays themselves, computed before what reads them.

  XLA fuses a slice at a position that is known at run time only into the element-wise loops that read it, which are
  then not vectorized: an exponential takes six times as long. It does not fuse a branch, here always the first.
  """
  always = segments[0, 0] >= OUTSIDE
  return jax.lax.cond(always, lambda x: x, lambda x: jax.tree.map(jnp.zeros_like, x), arrays)


def _joined(spans_of: Sequence[Array]) -> Array:
  """Joins the blocks [blocks B K G S …] of all spans along S."""
  blocks = itertools.chain.from_iterable(spans_of)
  return jnp.concatenate(list(blocks), axis=3)


def _scores(
  x: Float[Array, "B K G S H"], keys: Float[Array, "B K U H"]
) -> Float[Array, "B K G S U"]:
  return _product("bkqh,bkuh->bkqu", _flat(x), keys).reshape(*x.shape[:4], -1)


def _of_values(
  weights: Float[Array, "B K G S U"], values: Float[Array, "B K U H"]
) -> Float[Array, "B K G S H"]:
  return _product("bkqu,bkuh->bkqh", _flat(weights), values).reshape(*weights.shape[:4], -1)


def _of_queries(
  weights: Float[Array, "B K G S U"], x: Float[Array, "B K G S H"]
) -> Float[Array, "B K U H"]:
  return _product("bkqu,bkqh->bkuh", _flat(weights), _flat(x))


def _flat(x: Float[Array, "B K G S X"]) -> Float[Array, "B K GS X"]:
  """Joins the queries of all heads that share keys: with two such axes, products are half as fast."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _product(form: str, a: Array, b: Array) -> Array:
  return jnp.einsum(form, a, b, preferred_element_type=jnp.float32)
