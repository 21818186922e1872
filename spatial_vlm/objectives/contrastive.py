"""Similarities of encoded texts and the contrastive loss on them (M3-Embedding, Chen et al., arXiv 2402.03216)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm.model.xlm_roberta import Encoding


def dense_similarities(queries: Encoding, candidates: Encoding) -> Float[Array, "Q C"]:
  """s_dense = e_q · e_c"""
  return queries.dense @ candidates.dense.T


def lexical_similarities(
  queries: Encoding,
  query_tokens: Int[Array, "Q T"],
  candidates: Encoding,
  candidate_tokens: Int[Array, "C U"],
  vocab_size: int,
) -> Float[Array, "Q C"]:
  """s_lex = Σ_{t ∈ q ∩ c} w_q(t) w_c(t), with the weights of each text scaled to length 1 (published without)"""

  def weights(encoding, tokens):
    rows = jnp.arange(len(tokens))[:, None]
    table = jnp.zeros((len(tokens), vocab_size)).at[rows, tokens].max(encoding.lexical)
    squares = jnp.sum(table * table, axis=1, keepdims=True)
    return table * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))

  return weights(queries, query_tokens) @ weights(candidates, candidate_tokens).T


def vector_similarities(
  queries: Encoding,
  query_mask: Bool[Array, "Q T"],
  candidates: Encoding,
  candidate_mask: Bool[Array, "C U"],
) -> Float[Array, "Q C"]:
  """s_mul = 1/N Σ_{i=1..N} max_j e_q,i · e_c,j over the tokens after `<s>`"""
  products = jnp.einsum("qtd,cud->qctu", queries.vectors[:, 1:], candidates.vectors[:, 1:])
  products = jnp.where(candidate_mask[None, :, None, 1:], products, -1.0)
  real = query_mask[:, 1:]
  largest = jnp.where(real[:, None], jnp.max(products, axis=3), 0.0)
  return jnp.sum(largest, axis=2) / jnp.sum(real, axis=1)[:, None]


def info_nce(
  similarities: Float[Array, "Q Q"], excluded: Bool[Array, "Q Q"], temperature: float
) -> tuple[Float[Array, ""], Int[Array, ""]]:
  """Σ_i −log( exp(s_ii/τ) / Σ_{j=i or not excluded} exp(s_ij/τ) ), and the number of rows

  Candidate i is the positive of query i; `excluded` marks pairs that mean the same and are no negatives.
  """
  count = len(similarities)
  scores = jnp.where(excluded & ~jnp.eye(count, dtype=bool), -jnp.inf, similarities / temperature)
  losses = jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)
  return jnp.sum(losses), jnp.int32(count)
