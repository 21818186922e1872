"""Sampling completions: the prompts are prefilled once, then decoded token by token, state -> state.

Random keys are functions of (key, prompt, sample, token): a completion depends neither on its batch nor on
interruptions of the run.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.token_logprobs import ban
from spatial_vlm.types import Params, Prompts


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
  """How completions are sampled; all of it is compiled into the program."""

  group_size: int
  """Completions of each prompt."""
  max_new_tokens: int
  temperature: float
  """0 takes the likeliest token."""
  eos: int
  """Id of the token that ends a completion."""
  pad: int
  """Id that fills a row after its end."""


class Completions(NamedTuple):
  """Generated tokens (R = prompts × group_size rows)."""

  tokens: Int[Array, "R T"]
  mask: Bool[Array, "R T"]
  """True up to and including the end-of-turn token."""
  logp: Float[Array, "R T"]
  """Log-probability of each token; 0 after the end."""


class DecodeState(NamedTuple):
  """What one step of decoding hands to the next."""

  t: Int[Array, ""]
  logits: Float[Array, "R V"]
  cache: qwen3_vl.Cache
  done: Bool[Array, "R"]
  completions: Completions


def sample_keys(key: PRNGKeyArray, ids: Int[Array, "B"], group_size: int) -> Key[Array, "R"]:
  """One key for each of `group_size` answers to each prompt: fold_in(fold_in(key, id), sample)."""
  of_prompt = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
  of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  return of_sample(of_prompt, jnp.arange(group_size)).reshape(-1)


def sample_token(
  logits: Float[Array, "R V"], keys: Key[Array, "R"], t: Int[Array, ""], temperature: float
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
  """Next tokens and their log-probabilities at `temperature`; 0 means the likeliest token (log-probability at 1)."""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32) / (temperature or 1.0), axis=-1)
  if temperature:
    token = draw_tokens(logp, jax.vmap(lambda k: jax.random.fold_in(k, t))(keys))
  else:
    token = jnp.argmax(logp, axis=-1)
  return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


VOCABULARY_PARTS = 128
"""Parts of the vocabulary in `draw_tokens`; a power of two, so that a mesh axis divides them."""


def draw_tokens(logp: Float[Array, "R V"], keys: Key[Array, "R"]) -> Int[Array, "R"]:
  """Draws one token of each row with probability in proportion to exp(logp).

  Two uniform numbers a row replace V Gumbel numbers: one chooses a part of the vocabulary, one a token of the part,
  each by the cumulative sum. One number for the whole vocabulary would be too coarse: uniform numbers are multiples of
  2⁻²³, and many tokens are less likely than that. On two CPU cores, 64 rows of 151,936 tokens take a sixth of the time,
  and 32 rows of 433 tokens a third (2026-11-27, jax 0.10.2, float32 and bfloat16 logits).
  """
  R, V = logp.shape
  width = -(-V // VOCABULARY_PARTS)
  p = jnp.pad(jnp.exp(logp), [(0, 0), (0, VOCABULARY_PARTS * width - V)])
  p = p.reshape(R, VOCABULARY_PARTS, width)
  u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  part = _place_in_sum(jnp.sum(p, axis=-1), u[:, 0])
  is_part = jnp.arange(VOCABULARY_PARTS)[None, :, None] == part[:, None, None]
  of_part = jnp.sum(jnp.where(is_part, p, 0), axis=1)
  return part * width + _place_in_sum(of_part, u[:, 1])


def _place_in_sum(p: Float[Array, "R n"], u: Float[Array, "R"]) -> Int[Array, "R"]:
  """Returns the first place where the cumulative sum of p exceeds u of the whole; p is positive there."""
  # Parallel sums round, so that they may also grow by a little where p is 0.
  upto = jnp.where(p > 0, jnp.cumsum(p, axis=-1), 0)
  return jnp.argmax(upto > u[:, None] * jnp.max(upto, axis=-1, keepdims=True), axis=-1)


class RowSampling(Protocol):
  """The rows' settings that `sample_rows` reads (see `slots.RowSettings`)."""

  temperature: Any
  top_p: Any
  top_k: Any


def sample_rows(
  logits: Float[Array, "R V"],
  keys: Key[Array, "R"],
  t: Int[Array, "R"],
  settings: RowSampling,
  active: Bool[Array, "R"],
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
  """Returns the next token of each row, and its log-probability at the row's temperature over all allowed tokens.

  Temperature 0 means the likeliest token (log-probability at 1). What no active row needs (random numbers, the sort of
  top-p and top-k) is not computed.
  """
  is_drawn = settings.temperature > 0
  logp = _row_logprobs(logits, settings)
  likeliest = jnp.argmax(logp, axis=-1)

  def draw() -> Int[Array, "R"]:
    cuts = is_drawn & active & ((settings.top_p < 1) | (settings.top_k > 0))
    kept = jax.lax.cond(
      jnp.any(cuts), lambda: truncate(logp, settings.top_p, settings.top_k), lambda: logp
    )
    now = jax.vmap(jax.random.fold_in)(keys, t)
    return jnp.where(is_drawn, draw_tokens(kept, now), likeliest)

  token = jax.lax.cond(jnp.any(is_drawn & active), draw, lambda: likeliest)
  return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


def _row_logprobs(logits: Float[Array, "R V"], settings: RowSampling) -> Float[Array, "R V"]:
  scale = jnp.where(settings.temperature > 0, settings.temperature, 1.0)
  return jax.nn.log_softmax(logits.astype(jnp.float32) / scale[:, None], axis=-1)


def likeliest_tokens(
  logits: Float[Array, "R V"], settings: RowSampling, wanted: Bool[Array, "R"], count: int
) -> tuple[Int[Array, "R A"], Float[Array, "R A"]]:
  """Returns the `count` likeliest tokens and their log-probabilities, those of `sample_rows`, the likeliest first.

  They are zeros where no row is `wanted`: nothing is sorted then.
  """
  shape = len(wanted), count
  logp, token = jax.lax.cond(
    jnp.any(wanted),
    lambda: tuple(jax.lax.top_k(_row_logprobs(logits, settings), count)),
    lambda: (jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)),
  )
  return token, logp


def truncate(
  logp: Float[Array, "R V"], top_p: Float[Array, "R"], top_k: Int[Array, "R"]
) -> Float[Array, "R V"]:
  """Returns the log-probabilities with −inf outside the `top_k` likeliest tokens (0: all) and the nucleus `top_p`.

  The nucleus is the smallest set of the likeliest tokens whose probability, among the `top_k`, reaches `top_p`
  (Holtzman et al., arXiv 1904.09751). Tokens as likely as its last one belong to it. A `top_p` of 1 keeps all.
  """
  V = logp.shape[-1]
  ordered = jnp.sort(logp, axis=-1, descending=True)
  is_kept = jnp.arange(V)[None] < jnp.where(top_k > 0, top_k, V)[:, None]
  p = jax.nn.softmax(jnp.where(is_kept, ordered, -jnp.inf), axis=-1)
  # The cumulative sum rounds to 1 before the last of many tokens, so a top_p of 1 is not compared with it.
  is_kept &= (jnp.cumsum(p, axis=-1) - p < top_p[:, None]) | (top_p[:, None] >= 1)
  count = jnp.maximum(jnp.sum(is_kept, axis=-1), 1)
  last = jnp.take_along_axis(ordered, count[:, None] - 1, axis=-1)
  return jnp.where(logp >= last, logp, -jnp.inf)


@functools.partial(jax.jit, static_argnames=("model", "sampling"))
def generate(
  params: Params,
  prompts: Prompts,
  key: PRNGKeyArray,
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  prefixes: Prefixes | None = None,
  *,
  model: ModelConfig,
  sampling: SamplingSettings,
) -> Completions:
  """Samples `group_size` completions of at most `max_new_tokens` tokens for every prompt, after its prefix if any.

  `forbidden_tokens` are never sampled. A prompt is read once; its completions share the cache. Rows that have ended
  produce `pad`; the loop stops when all rows have ended.
  """
  group_size, max_new_tokens, pad = sampling.group_size, sampling.max_new_tokens, sampling.pad
  logits, cache = qwen3_vl.prefill(params, model, prompts, prefixes)
  logits = jnp.repeat(logits, group_size, axis=0)
  keys = sample_keys(key, prompts.ids, group_size)
  rows = logits.shape[0]
  decoding = qwen3_vl.decoding_params(params, model)
  empty = Completions(
    tokens=jnp.full((rows, max_new_tokens), pad, jnp.int32),
    mask=jnp.zeros((rows, max_new_tokens), bool),
    logp=jnp.zeros((rows, max_new_tokens), jnp.float32),
  )

  def decode_step(s: DecodeState) -> DecodeState:
    token, logp = sample_token(ban(s.logits, forbidden_tokens), keys, s.t, sampling.temperature)
    token = jnp.where(s.done, pad, token).astype(jnp.int32)
    written = Completions(
      tokens=s.completions.tokens.at[:, s.t].set(token),
      mask=s.completions.mask.at[:, s.t].set(~s.done),
      logp=s.completions.logp.at[:, s.t].set(jnp.where(s.done, 0.0, logp)),
    )
    done = s.done | (token == sampling.eos)
    logits, cache = qwen3_vl.decode(decoding, model, token, s.cache)
    return DecodeState(s.t + 1, logits, cache, done, written)

  state = DecodeState(jnp.zeros((), jnp.int32), logits, cache, jnp.zeros(rows, bool), empty)
  end = 0
  for slots in stages(max_new_tokens):
    end += slots
    with jax.named_scope(TOKENS):
      state = jax.lax.while_loop(
        lambda s, end=end: (s.t < end) & ~jnp.all(s.done),
        decode_step,
        state._replace(cache=qwen3_vl.add_cache_block(state.cache, slots, rows)),
      )
  return state.completions


@functools.partial(jax.jit, static_argnames="model")
def first_token_logits(
  params: Params, prompts: Prompts, prefixes: Prefixes | None = None, *, model: ModelConfig
) -> Float[Array, "B V"]:
  """Returns the logits of the token after each prompt, which follows its prefix if any."""
  return qwen3_vl.prefill(params, model, prompts, prefixes)[0]


TOKENS = "tokens"
"""Scope of the loops over tokens, by which they are found in a compiled program."""
STAGES = 4
"""Blocks in which the cache of the answers grows: the more, the fewer empty slots are read, and the more loops there
are to compile."""


def stages(max_new_tokens: int) -> list[int]:
  """Slots of each stage.

  >>> stages(10)
  [3, 3, 2, 2]
  """
  return [len(part) for part in np.array_split(range(max_new_tokens), min(STAGES, max_new_tokens))]
