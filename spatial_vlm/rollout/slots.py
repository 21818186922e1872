"""Decode slots on the devices, and the two compiled programs that change them: `fill_slots` and `decode_slots`.

A row decodes one answer. `fill_slots` reads prompts and puts each into free slots; `decode_slots` samples up to k
tokens of every active row. During a call, all rows write token j into column j of one small block; at its end the block
is appended to each row's own answer, at the row's own offset. So tokens are written without a scatter, the large arrays
are only read in the loop, and a row's arithmetic does not depend on the other rows. A ring of columns or an offset per
row takes 1.8 to 2 times as long on a CPU (launch/bench_cache.py, docs/design.md).
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from spatial_vlm import sharding
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.attention import LayersBlock, Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.text import cache_stacks
from spatial_vlm.objectives.token_logprobs import ban
from spatial_vlm.rollout.sampler import TOKENS, likeliest_tokens, sample_keys, sample_rows
from spatial_vlm.types import Params, Prompts, Pytree

P = PartitionSpec


@flax.struct.dataclass
class RowSettings(Pytree):
  """How each row is sampled. These are arrays, so that no setting compiles another program."""

  keys: UInt32[Array | np.ndarray, "R 2"]
  """Data of the row's random key; that of token t is fold_in(key, t)."""
  temperature: Float[Array | np.ndarray, "R"]
  """0 takes the likeliest token."""
  top_p: Float[Array | np.ndarray, "R"]
  top_k: Int[Array | np.ndarray, "R"]
  """0: all tokens."""
  limit: Int[Array | np.ndarray, "R"]
  """Most tokens of the answer."""
  ends: Int[Array | np.ndarray, "R E"]
  """Tokens that end the answer; −1 is none."""
  wants_likeliest: Bool[Array | np.ndarray, "R"]
  """Whether the likeliest tokens at each place are returned too."""


@flax.struct.dataclass
class Slots(Pytree):
  """State of R rows, n = R / P of which share a prompt's cache."""

  prompts: LayersBlock
  """Keys and values of P prompts."""
  answers: tuple[tuple[Array, ...], tuple[Array, ...]] | None
  """Keys [layers R K H S] and values [layers R K S H] of the answers in stacks of layers, filled up to `length`; None
  where every answer fits into one call."""
  logits: Float[Array, "R V"]
  next_position: Int[Array, "R"]
  length: Int[Array, "R"]
  """Tokens sampled so far."""
  active: Bool[Array, "R"]
  settings: RowSettings


@flax.struct.dataclass
class Arrivals(Pytree):
  """F prompts that `fill_slots` reads; a prompt with more than n samples takes several slots."""

  prompts: Prompts
  places: Int[np.ndarray, "F C"]
  """Slots of each prompt among those of its part of the mesh; a number beyond the last one is none."""
  samples: Int[np.ndarray, "F"]
  settings: RowSettings
  """One row a prompt; `keys` are those that the prompt's number is folded into."""


@flax.struct.dataclass
class DecodedTokens(Pytree):
  """What one call of `decode_slots` sampled."""

  tokens: Int[Array, "R k"]
  logp: Float[Array, "R k"]
  count: Int[Array, "R"]
  """Tokens of each row."""
  active: Bool[Array, "R"]
  """Rows that go on."""
  ended: Bool[Array, "R"]
  """Rows whose last token is one of their `ends`."""
  likeliest: Int[Array, "R k A"]
  """The likeliest tokens at each place; zeros in rows that do not want them."""
  likeliest_logp: Float[Array, "R k A"]


class _DecodeState(NamedTuple):
  """What one step of `decode_slots` hands to the next."""

  j: Int[Array, ""]
  """Column of the call's block."""
  logits: Float[Array, "R V"]
  filling: LayersBlock
  """The call's block; the earlier blocks are only read."""
  next_position: Int[Array, "R"]
  length: Int[Array, "R"]
  active: Bool[Array, "R"]
  ended: Bool[Array, "R"]
  tokens: Int[Array, "R k"]
  logp: Float[Array, "R k"]
  likeliest: Int[Array, "R k A"]
  likeliest_logp: Float[Array, "R k A"]


@dataclasses.dataclass(frozen=True)
class SlotSizes:
  """Static sizes of slots."""

  prompt_slots: int
  """P."""
  rows_per_prompt: int
  """n."""
  prompt_tokens: int
  """Slots of a prompt's cache, its prefix included."""
  answer_tokens: int
  """Slots of an answer's cache."""
  end_tokens: int
  """E."""

  @property
  def rows(self) -> int:
    """R."""
    return self.prompt_slots * self.rows_per_prompt


def empty_slots(model: ModelConfig, mesh: Mesh, dtype: DTypeLike, sizes: SlotSizes) -> Slots:
  """Returns the shapes of slots over the mesh, as `jax.ShapeDtypeStruct`s; `zeros` makes them."""
  text, prompts, rows = model.text, sizes.prompt_slots, sizes.rows

  def array(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)

  K, H, S, A = text.num_key_value_heads, text.head_dim, sizes.prompt_tokens, sizes.answer_tokens

  def stacks(*shape: int) -> tuple[Any, ...]:
    return tuple(array((layers, *shape), dtype) for layers in cache_stacks(text))

  integers, numbers = array((rows,), jnp.int32), array((rows,), jnp.float32)
  shapes = Slots(
    prompts=LayersBlock(
      stacks(prompts, K, H, S), stacks(prompts, K, S, H), array((prompts, S), jnp.bool_)
    ),
    answers=(stacks(rows, K, H, A), stacks(rows, K, A, H)) if A else None,
    logits=array((rows, text.vocab_size), jnp.float32),
    next_position=integers,
    length=integers,
    active=array((rows,), jnp.bool_),
    settings=RowSettings(
      keys=array((rows, 2), jnp.uint32),
      temperature=numbers,
      top_p=numbers,
      top_k=integers,
      limit=integers,
      ends=array((rows, sizes.end_tokens), jnp.int32),
      wants_likeliest=array((rows,), jnp.bool_),
    ),
  )
  return sharding.with_shardings(
    shapes, jax.tree.map(lambda spec: NamedSharding(mesh, spec), slot_specs(mesh, shapes))
  )


def zeros(shapes: Slots) -> Slots:
  """Returns slots in which no row is active."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)


def slot_specs(mesh: Any, slots: Slots) -> Slots:
  """Returns the PartitionSpec of every array: prompts and rows over ROWS, heads and vocabulary over `tensor`."""

  def axes(wanted: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    divisible = sharding.divisible_axes(wanted, mesh, size)
    return tuple(axis for axis in divisible if mesh.shape[axis] > 1) or None

  def spec(*names: tuple[str, ...] | None) -> Any:  # a spec stands where an array is expected
    return P(*names)

  rows = axes(sharding.ROWS, slots.prompts.valid.shape[0])
  heads = axes(("tensor",), slots.prompts.keys[0].shape[2])
  vocabulary = axes(("tensor",), slots.logits.shape[1])
  cache: Any = (spec(None, rows, heads),) * len(slots.prompts.keys)
  return Slots(
    prompts=LayersBlock(cache, cache, spec(rows)),
    answers=None if slots.answers is None else (cache, cache),
    logits=spec(rows, vocabulary),
    next_position=spec(rows),
    length=spec(rows),
    active=spec(rows),
    settings=jax.tree.map(lambda _: spec(rows), slots.settings),
  )


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def fill_slots(
  weights: Params,
  slots: Slots,
  arrivals: Arrivals,
  prefixes: Prefixes | None = None,
  *,
  model: ModelConfig,
) -> Slots:
  """Reads each prompt once, after its prefix if any, and starts its answers in free slots."""
  logits, cache = qwen3_vl.prefill(weights, model, arrivals.prompts, prefixes)
  mesh = jax.sharding.get_abstract_mesh()
  inputs = (slots, cache.blocks[0], logits, cache.next_position, arrivals)
  if mesh.empty:
    return _placed(*inputs)
  specs = slot_specs(mesh, slots)
  rows = specs.length
  of_arrivals = jax.tree.map(lambda _: rows, arrivals)
  return jax.shard_map(
    _placed,
    in_specs=(specs, specs.prompts, specs.logits, rows, of_arrivals),
    out_specs=specs,
    check_vma=False,
  )(*inputs)


def _placed(
  slots: Slots,
  block: LayersBlock,
  logits: Float[Array, "F V"],
  next_position: Int[Array, "F"],
  arrivals: Arrivals,
) -> Slots:
  """Puts prompts into the slots of one part of the mesh."""
  prompts, rows = len(slots.prompts.valid), len(slots.length)
  n, (F, C), (_, T) = rows // prompts, arrivals.places.shape, block.valid.shape
  keys, values, valid = slots.prompts.keys, slots.prompts.values, slots.prompts.valid
  of_slot = jnp.pad(block.valid, [(0, 0), (0, valid.shape[1] - T)])
  for at in arrivals.places.T:
    keys, values = (
      jax.tree.map(
        lambda old, new, at=at, where=where: old.at[:, at, *where].set(new, mode="drop"), *pair
      )
      for pair, where in (
        ((keys, block.keys), np.s_[:, :, :T]),
        ((values, block.values), np.s_[:, :T]),
      )
    )
    valid = valid.at[at].set(of_slot, mode="drop")

  number = jnp.arange(C * n)[None]
  row = (arrivals.places[:, :, None] * n + jnp.arange(n)[None, None]).reshape(F, C * n)
  is_sample = (number < arrivals.samples[:, None]) & (row < rows)
  row = jnp.where(is_sample, row, rows).reshape(-1)  # beyond the last row: nothing is written

  def put(old: Array, of_prompt: Array) -> Array:
    return old.at[row].set(jnp.repeat(of_prompt, C * n, axis=0), mode="drop")

  settings = jax.tree.map(put, slots.settings, arrivals.settings)
  of_samples = _sample_keys(jnp.asarray(arrivals.settings.keys), arrivals.prompts.ids, C * n)
  keys_of_rows = jnp.asarray(slots.settings.keys).at[row].set(of_samples, mode="drop")
  settings = settings.replace(keys=keys_of_rows)
  return Slots(
    prompts=LayersBlock(keys, values, valid),
    answers=slots.answers,
    logits=put(slots.logits, logits),
    next_position=put(slots.next_position, next_position),
    length=slots.length.at[row].set(0, mode="drop"),
    active=slots.active.at[row].set(True, mode="drop"),
    settings=settings,
  )


def _sample_keys(
  keys: UInt32[Array, "F 2"], ids: Int[Array, "F"], samples: int
) -> UInt32[Array, "R 2"]:
  """Returns the keys of each prompt's samples (see `sampler.sample_keys`), each prompt with a key of its own."""

  def of_prompt(key: Array, id: Array) -> Array:
    return jax.random.key_data(sample_keys(jax.random.wrap_key_data(key), id[None], samples))

  return jax.vmap(of_prompt)(keys, ids).reshape(-1, keys.shape[-1])


@functools.partial(
  jax.jit, static_argnames=("model", "tokens", "top_logprobs"), donate_argnames="slots"
)
def decode_slots(
  weights: Params,
  slots: Slots,
  keep: Bool[Array | np.ndarray, "R"],
  forbidden_tokens: Bool[Array | np.ndarray, "V"],
  *,
  model: ModelConfig,
  tokens: int,
  top_logprobs: int = 0,
) -> tuple[Slots, DecodedTokens]:
  """Samples up to `tokens` tokens of every active row; rows that `keep` drops stop before the first.

  The `top_logprobs` likeliest tokens of each step are returned for the rows that want them.
  """
  settings, begin = slots.settings, slots.length
  keys = jax.random.wrap_key_data(jnp.asarray(settings.keys))
  cache = qwen3_vl.Cache((slots.prompts, *_answer_blocks(slots)), slots.next_position, jnp.int32(0))
  rows = len(begin)
  cache = qwen3_vl.add_cache_block(cache, tokens, rows)
  *full, filling = cache.blocks
  decoding = qwen3_vl.decoding_params(weights, model)

  def decode_step(s: _DecodeState) -> _DecodeState:
    allowed = ban(s.logits, forbidden_tokens)
    token, logp = sample_rows(allowed, keys, s.length, settings, s.active)
    likeliest, likeliest_logp = s.likeliest, s.likeliest_logp
    if top_logprobs:
      wanted = jnp.asarray(settings.wants_likeliest) & s.active
      top, top_logp = likeliest_tokens(allowed, settings, wanted, top_logprobs)
      likeliest = likeliest.at[:, s.j].set(top)
      likeliest_logp = likeliest_logp.at[:, s.j].set(top_logp)
    is_end = s.active & jnp.any(token[:, None] == settings.ends, axis=1)
    length = s.length + s.active
    logits, cache = qwen3_vl.decode(
      decoding, model, token, qwen3_vl.Cache((*full, s.filling), s.next_position, s.j)
    )
    return _DecodeState(
      j=s.j + 1,
      logits=logits,
      filling=cache.blocks[-1],
      next_position=cache.next_position,
      length=length,
      active=s.active & ~is_end & (length < settings.limit),
      ended=s.ended | is_end,
      tokens=s.tokens.at[:, s.j].set(jnp.where(s.active, token, 0)),
      logp=s.logp.at[:, s.j].set(jnp.where(s.active, logp, 0.0)),
      likeliest=likeliest,
      likeliest_logp=likeliest_logp,
    )

  state = _DecodeState(
    j=jnp.int32(0),
    logits=slots.logits,
    filling=filling,
    next_position=cache.next_position,
    length=begin,
    active=slots.active & keep,
    ended=jnp.zeros(rows, bool),
    tokens=jnp.zeros((rows, tokens), jnp.int32),
    logp=jnp.zeros((rows, tokens), jnp.float32),
    likeliest=jnp.zeros((rows, tokens, top_logprobs), jnp.int32),
    likeliest_logp=jnp.zeros((rows, tokens, top_logprobs), jnp.float32),
  )
  with jax.named_scope(TOKENS):
    state = jax.lax.while_loop(lambda s: (s.j < tokens) & jnp.any(s.active), decode_step, state)
  slots = slots.replace(
    answers=_appended(slots, state.filling, begin),
    logits=state.logits,
    next_position=state.next_position,
    length=state.length,
    active=state.active,
  )
  decoded = DecodedTokens(
    tokens=state.tokens,
    logp=state.logp,
    count=state.length - begin,
    active=state.active,
    ended=state.ended,
    likeliest=state.likeliest,
    likeliest_logp=state.likeliest_logp,
  )
  return _constrained(slots), decoded


def _constrained(slots: Slots) -> Slots:
  """Constrains the arrays to their shardings, so that the next call is the same program."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return slots
  return jax.lax.with_sharding_constraint(slots, slot_specs(mesh, slots))


def _answer_blocks(slots: Slots) -> list[LayersBlock]:
  """Returns the earlier tokens of the answers as a block of the cache."""
  if slots.answers is None:
    return []
  keys, values = slots.answers
  valid = jnp.arange(keys[0].shape[-1])[None] < slots.length[:, None]
  return [LayersBlock(keys, values, valid)]


def _appended(
  slots: Slots, block: LayersBlock, begin: Int[Array, "R"]
) -> tuple[tuple[Array, ...], tuple[Array, ...]] | None:
  """Returns the answers with the block's tokens after the first `begin` of each row.

  A row that has ended may write over its own old tokens, which nothing reads any more.
  """
  if slots.answers is None:
    return None

  def append(answers, new, start, axis):
    # Rows of all layers in one leading axis: mapped over the second axis, the large arrays would be transposed.
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
    old, tail = (x.reshape(-1, *x.shape[2:]) for x in (answers, new))
    return jax.vmap(write)(old, tail, jnp.tile(start, len(answers))).reshape(answers.shape)

  def both(keys, values, new_keys, new_values, start):
    def all_stacks(old, new, axis):
      return tuple(append(x, y, start, axis) for x, y in zip(old, new, strict=True))

    return all_stacks(keys, new_keys, -1), all_stacks(values, new_values, -2)

  inputs = (*slots.answers, block.keys, block.values, begin)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return both(*inputs)
  specs = slot_specs(mesh, slots)
  cache = specs.prompts.keys
  return jax.shard_map(
    both,
    in_specs=(cache, cache, cache, cache, specs.length),
    out_specs=(cache, cache),
    check_vma=False,
  )(*inputs)
