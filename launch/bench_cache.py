"""Measures three ways to write new tokens of rows at different offsets into a cache, each with attention over it.

  offset  every token into its row's own column: a scatter
  ring    every token of all rows into one column, with a validity mask per row
  block   as `rollout.slots`: one column of a small block for all rows, appended to the rows after k tokens

Times are CPU times per token of all rows. It prints a table.

python launch/bench_cache.py
"""

import argparse
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from spatial_vlm.model.attention import CacheBlock, cached_attention
from spatial_vlm.text import markdown_table

K, G, H, PROMPT, LAYERS = 2, 2, 32, 64, 4
"""Heads, layers and prompt of the tiny model."""
write_at = jax.lax.dynamic_update_slice_in_dim


def write_rows(old: jax.Array, new: jax.Array, at: jax.Array, axis: int) -> jax.Array:
  return jax.vmap(functools.partial(write_at, axis=axis))(old, new, at)


def empty(rows: int, slots: int) -> list[tuple[jax.Array, jax.Array]]:
  """Returns keys and values of each layer."""
  shapes = (rows, K, H, slots), (rows, K, slots, H)
  return [(jnp.zeros(shapes[0]), jnp.zeros(shapes[1])) for _ in range(LAYERS)]


def layers_step(query: jax.Array, blocks_of_layer: list[list[CacheBlock]]) -> jax.Array:
  new = jnp.ones((len(query), K, 1, H))
  for blocks in blocks_of_layer:
    query = query + 1e-3 * cached_attention(query, new, new, blocks)
  return query


def cache_block(keys_values: tuple[jax.Array, jax.Array], valid: jax.Array) -> CacheBlock:
  keys, values = keys_values
  return CacheBlock(keys, values, valid)


def prompt_block(rows: int) -> CacheBlock:
  return cache_block(empty(rows, PROMPT)[0], jnp.ones((rows, PROMPT), bool))


def in_columns(is_ring: bool, query, cache, length, tokens):
  """Writes each token into the cache at once, into one column or into a column per row."""
  rows, slots = len(query), cache[0][0].shape[-1]
  prompt, new = prompt_block(rows), jnp.ones((rows, K, 1, H))

  def step(j, carried):
    query, cache = carried
    at = length + j
    column = at[0] % slots
    age = (column - 1 - jnp.arange(slots)) % slots if is_ring else jnp.arange(slots)
    valid = age[None] < at[:, None]
    query = layers_step(query, [[prompt, cache_block(kv, valid)] for kv in cache])
    write, where = (write_at, column) if is_ring else (write_rows, at)
    cache = [
      (write(k, new.swapaxes(-1, -2), where, -1), write(v, new, where, -2)) for k, v in cache
    ]
    return query, cache

  return jax.lax.fori_loop(0, tokens, step, (query, cache))


def in_blocks(query, cache, length, tokens):
  rows, slots = len(query), cache[0][0].shape[-1]
  prompt, new = prompt_block(rows), jnp.ones((rows, K, 1, H))
  valid = jnp.arange(slots)[None] < length[:, None]

  def step(j, carried):
    query, filling = carried
    filled = jnp.broadcast_to(jnp.arange(tokens) < j, (rows, tokens))
    query = layers_step(
      query,
      [
        [prompt, cache_block(old, valid), cache_block(block, filled)]
        for old, block in zip(cache, filling, strict=True)
      ],
    )
    filling = [
      (write_at(k, new.swapaxes(-1, -2), j, -1), write_at(v, new, j, -2)) for k, v in filling
    ]
    return query, filling

  query, filling = jax.lax.fori_loop(0, tokens, step, (query, empty(rows, tokens)))
  cache = [
    (write_rows(old[0], new[0], length, -1), write_rows(old[1], new[1], length, -2))
    for old, new in zip(cache, filling, strict=True)
  ]
  return query, cache


WAYS: dict[str, Callable] = {
  "offset": functools.partial(in_columns, False),
  "ring": functools.partial(in_columns, True),
  "block": in_blocks,
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=32)
  parser.add_argument("--slots", type=int, default=128, help="columns of an answer's cache")
  parser.add_argument("--tokens", type=int, default=8, help="tokens of a call")
  parser.add_argument("--rounds", type=int, default=15)
  args = parser.parse_args()
  query = jnp.ones((args.rows, 1, K * G, H))
  length = jnp.arange(args.rows) * (args.slots - 5 * args.tokens) // args.rows
  programs = {
    way: jax.jit(functools.partial(f, tokens=args.tokens), donate_argnums=1)
    for way, f in WAYS.items()
  }
  times: dict[str, list[float]] = {way: [] for way in WAYS}
  for turn in range(args.rounds + 1):  # the first compiles
    for way, program in programs.items():
      cache = jax.block_until_ready(empty(args.rows, args.slots))
      began = time.process_time()
      for _ in range(4):
        _, cache = program(query, cache, length)
      jax.block_until_ready(cache)
      spent = (time.process_time() - began) / 4 / args.tokens
      times[way] += [spent * 1e3] if turn else []
  cells = [
    [
      way,
      f"{np.median(t):.2f}",
      f"{min(t):.2f} … {max(t):.2f}",
      f"{np.median(np.divide(t, times['block'])):.2f}",
    ]
    for way, t in times.items()
  ]
  print(markdown_table(["way", "ms per token", "min … max", "of block"], cells))


if __name__ == "__main__":
  main()
