"""Answers from the model: prefill the prompts once, then decode token by token, state -> state.

Random keys are functions of (key, prompt, sample, token), so an answer does not depend on the batch it is drawn
in, nor on how often the run was interrupted.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.token_logprobs import ban
from spatial_vlm.types import Params, Prompts


class Completions(NamedTuple):
  """Generated tokens (R = prompts × samples rows); `mask` is True up to and including the end token."""

  tokens: Int[Array, "R T"]
  mask: Bool[Array, "R T"]
  logp: Float[Array, "R T"]


class DecodeState(NamedTuple):
  """What one step of decoding hands to the next."""

  t: Int[Array, ""]
  logits: Float[Array, "R V"]
  cache: qwen3_vl.Cache
  done: Bool[Array, "R"]
  completions: Completions


def sample_keys(key: PRNGKeyArray, ids: Int[Array, "B"], samples: int) -> PRNGKeyArray:
  """One key for each of `samples` answers to each prompt: fold_in(fold_in(key, id), sample)."""
  of_prompt = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
  of_sample = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  return of_sample(of_prompt, jnp.arange(samples)).reshape(-1)


def choose(
  logits: Float[Array, "R V"], keys: PRNGKeyArray, t: Int[Array, ""], temperature: float
) -> tuple[Int[Array, "R"], Float[Array, "R"]]:
  """Next tokens and their log-probabilities at `temperature`; 0 means the likeliest token (log-probability at 1)."""
  logp = jax.nn.log_softmax(logits.astype(jnp.float32) / (temperature or 1.0), axis=-1)
  if temperature:
    now = jax.vmap(lambda k: jax.random.fold_in(k, t))(keys)
    token = jax.vmap(jax.random.categorical)(now, logp)
  else:
    token = jnp.argmax(logp, axis=-1)
  return token, jnp.take_along_axis(logp, token[:, None], axis=-1)[:, 0]


@functools.partial(
  jax.jit, static_argnames=("model", "samples", "max_tokens", "temperature", "eos", "pad")
)
def generate(
  params: Params,
  prompts: Prompts,
  key: PRNGKeyArray,
  banned: Bool[Array, "V"],
  *,
  model: ModelConfig,
  samples: int,
  max_tokens: int,
  temperature: float,
  eos: int,
  pad: int,
) -> Completions:
  """`samples` answers of at most `max_tokens` tokens to every prompt; `banned` ids are never produced.

  The prompt is read once and its cache shared by its samples. Rows that have ended produce `pad`, and the loop stops
  when all have ended.
  """
  logits, cache = qwen3_vl.prefill(params, model, prompts)
  logits = jnp.repeat(logits, samples, axis=0)
  keys = sample_keys(key, prompts.ids, samples)
  rows = logits.shape[0]
  empty = Completions(
    tokens=jnp.full((rows, max_tokens), pad, jnp.int32),
    mask=jnp.zeros((rows, max_tokens), bool),
    logp=jnp.zeros((rows, max_tokens), jnp.float32),
  )

  def extend(s: DecodeState) -> DecodeState:
    token, logp = choose(ban(s.logits, banned), keys, s.t, temperature)
    token = jnp.where(s.done, pad, token).astype(jnp.int32)
    written = Completions(
      tokens=s.completions.tokens.at[:, s.t].set(token),
      mask=s.completions.mask.at[:, s.t].set(~s.done),
      logp=s.completions.logp.at[:, s.t].set(jnp.where(s.done, 0.0, logp)),
    )
    done = s.done | (token == eos)
    logits, cache = qwen3_vl.decode(params, model, token, s.cache)
    return DecodeState(s.t + 1, logits, cache, done, written)

  state = DecodeState(jnp.zeros((), jnp.int32), logits, cache, jnp.zeros(rows, bool), empty)
  end = 0
  for slots in stages(max_tokens):
    end += slots
    with jax.named_scope(TOKENS):
      state = jax.lax.while_loop(
        lambda s, end=end: (s.t < end) & ~jnp.all(s.done),
        extend,
        state._replace(cache=qwen3_vl.with_room(state.cache, slots, rows)),
      )
  return state.completions


TOKENS = "tokens"
"""Scope of the loops over tokens, by which they are found in a compiled program."""
STAGES = 4
"""Blocks in which the cache of the answers grows: the more, the fewer empty slots are read, and the more loops there
are to compile."""


def stages(max_tokens: int) -> list[int]:
  """Slots of each stage.

  >>> stages(10)
  [3, 3, 2, 2]
  """
  return [len(part) for part in np.array_split(range(max_tokens), min(STAGES, max_tokens))]
