"""Verdicts of answers from their token ids alone, so that an RL step can stay on the device.

A grammar (`answers.Grammar`) is compiled into one automaton over bytes, which is composed over the bytes of every
token. Following an answer through the resulting table gives the verdict that `Grammar.parse` gives to its decoded text.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import flax.struct
import interegular
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from spatial_vlm.answers import Grammar

DEAD, START = 0, 1


@flax.struct.dataclass
class VerdictAutomaton:
  """A table over token ids. State 0 is dead (no answer can follow), state 1 is the start."""

  transitions: Integer[Array, "S V"]
  """The state after reading a token."""
  verdict: Int[Array, "S"]
  """Verdict of the grammar where the text read so far is a whole answer, −1 elsewhere."""
  eos: Int[Array, ""]


def compile_automaton(
  grammar: Grammar, token_bytes: Sequence[bytes], eos_id: int
) -> VerdictAutomaton:
  """Compiles a grammar into a table over token ids.

  `token_bytes[i]` are the bytes that token i stands for, empty for special tokens. A special token
  other than `eos_id`, and an id beyond `token_bytes`, can be part of no answer.
  """
  byte_table, verdict = _byte_automaton(grammar)
  table = _compose(byte_table, token_bytes)
  return VerdictAutomaton(jnp.asarray(table), jnp.asarray(verdict), jnp.asarray(eos_id, jnp.int32))


def verdicts(
  automaton: VerdictAutomaton, tokens: Int[Array, "*R T"], mask: Bool[Array, "*R T"]
) -> Int[Array, "*R"]:
  """Returns the verdict of each row, −1 for one that is no answer or has no end-of-turn token inside `mask`.

  Equal to `Grammar.parse` of the decoded text before the first end-of-turn token.
  """

  def read(carry, token_and_mask):
    state, ended = carry
    token, given = token_and_mask
    end = token == automaton.eos
    following = automaton.transitions.at[state, token].get(mode="fill", fill_value=DEAD)
    state = jnp.where(given & ~ended & ~end, following, state)
    return (state, ended | (given & end)), None

  rows = tokens.shape[:-1]
  start = (jnp.full(rows, START, automaton.transitions.dtype), jnp.zeros(rows, bool))
  steps = (jnp.moveaxis(tokens, -1, 0), jnp.moveaxis(mask, -1, 0))
  (state, ended), _ = jax.lax.scan(read, start, steps)
  return jnp.where(ended, automaton.verdict[state], -1)


def _byte_automaton(grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
  """Returns transitions UInt[S, 256] and verdict Int[S] of the grammar over bytes.

  Byte b stands for the Latin-1 character of that number. This is faithful to UTF-8, broken UTF-8
  included: a grammar names ASCII characters only, which are never part of another character, and
  its `[^\\n]+` takes any other byte as readily as a whole character. Every answer ends in a mark of
  its verdict, a character beyond the bytes, which tells the final states apart.
  """
  marks = {verdict: chr(256 + verdict) for verdict in grammar.verdicts}
  forms = [
    re.sub(r"\?P<\w+>", "", f"({prefix}{ending}{marks[verdict]})")
    for prefix, (verdict, ending) in itertools.product(
      grammar.forms.values(), grammar.verdicts.items()
    )
  ]
  machine: Any = interegular.parse_pattern("|".join(forms)).to_fsm().reduce()
  states = [machine.initial, *sorted(machine.states - {machine.initial})]
  number = {state: START + i for i, state in enumerate(states)}

  symbols = [machine.alphabet[chr(byte)] for byte in range(256)]
  table = np.full((START + len(states), 256), DEAD, np.min_scalar_type(len(states)))
  verdict = np.full(START + len(states), -1, np.int32)
  for state in states:
    after = machine.map.get(state, {})
    table[number[state]] = [number.get(after.get(symbol), DEAD) for symbol in symbols]
    for value, mark in marks.items():
      if after.get(machine.alphabet[mark]) in machine.finals:
        verdict[number[state]] = value
  return table, verdict


def _compose(byte_table: np.ndarray, token_bytes: Sequence[bytes]) -> np.ndarray:
  """Composes transitions [S, 256] over bytes into those [S, V] over tokens; an empty token is dead."""
  lengths = np.array([len(piece) for piece in token_bytes])
  text = np.frombuffer(b"".join(token_bytes), np.uint8)
  starts = np.cumsum(lengths) - lengths
  states = np.arange(len(byte_table), dtype=byte_table.dtype)
  table = np.repeat(states[:, None], len(token_bytes), axis=1)
  for j in range(lengths.max()):
    ids = np.flatnonzero(lengths > j)
    table[:, ids] = byte_table[table[:, ids], text[starts[ids] + j]]
  table[:, lengths == 0] = DEAD
  return table
