"""Keys and values of the texts before the image, computed once for all prompts that begin with the same text.

A table on the devices has a fixed number of slots of a fixed length, so that each program compiles once. The text that
was asked for longest ago makes room for a new one.
"""

import collections
import functools
import threading
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm import sharding
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.attention import Prefixes
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.types import Params, Pytree

Text = tuple[int, ...]
"""Tokens of a prefix; () is none."""
FILLED_AT_ONCE = 8
"""Texts of one call of `fill`."""


@flax.struct.dataclass
class PrefixTable(Pytree):
  """Keys and values of P texts."""

  keys: Float[Array, "layers P K S H"]
  values: Float[Array, "layers P K S H"]
  valid: Bool[Array, "P S"]


class PrefixCache:
  """The texts whose keys and values are in memory; threads may share it.

  Args:
    model: sizes of the model.
    mesh: devices that generate; key-value heads are sharded as in attention.
    slots: texts that are kept; at least as many as one batch has different ones.
    tokens: padded length of a text.
  """

  def __init__(self, model: ModelConfig, mesh: Mesh, slots: int, tokens: int):
    self.model, self.mesh, self.slots, self.tokens = model, mesh, slots, tokens
    self._lock = threading.Lock()
    self.clear()

  def clear(self) -> None:
    """Forgets everything, e.g. because the weights change."""
    self._slot_of: collections.OrderedDict[Text, int] = collections.OrderedDict()
    self._table: PrefixTable | None = None

  def prefixes(self, weights: Params, texts: Sequence[Text]) -> Prefixes:
    """Returns the texts of a batch's rows, after computing those that are not in memory.

    Raises ValueError for more texts than slots and for a text that is too long.
    """
    wanted = [text for text in dict.fromkeys(texts) if text]
    longest = max(map(len, wanted), default=0)
    if len(wanted) > self.slots or longest > self.tokens:
      raise ValueError(
        f"{len(wanted)} prefixes of up to {longest} tokens do not fit in {self.slots} slots of {self.tokens}"
      )
    with self._lock:
      table = self._filled(weights, wanted)
      numbers = [self._slot_of.get(text, -1) for text in texts]
    row = make_global_batch(self.mesh, np.array(numbers, np.int32))
    return Prefixes(table.keys, table.values, table.valid, row)

  def _filled(self, weights: Params, wanted: Sequence[Text]) -> PrefixTable:
    """Returns the table with these texts in it."""
    table, slot_of = self._table or self._empty(weights), self._slot_of.copy()
    missing = [text for text in wanted if text not in slot_of]
    for text in wanted:
      if text in slot_of:
        slot_of.move_to_end(text)
    for text in missing:
      full = len(slot_of) == self.slots
      slot_of[text] = slot_of.popitem(last=False)[1] if full else len(slot_of)
    count = min(FILLED_AT_ONCE, self.slots)
    for start in range(0, len(missing), count):
      texts = missing[start : start + count]
      slots = np.full(count, self.slots, np.int32)  # beyond the table: nothing is written
      slots[: len(texts)] = [slot_of[text] for text in texts]
      table = fill(weights, table, *_padded(texts, count, self.tokens), slots, model=self.model)
    # Both change only now: if a text could not be computed, the table is still that of the texts before.
    self._table, self._slot_of = table, slot_of
    return table

  def _empty(self, weights: Params) -> PrefixTable:
    shapes = table_shapes(
      self.model, self.mesh, self.slots, self.tokens, computation_dtype(weights)
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)


def computation_dtype(weights: Params) -> np.dtype:
  """Returns the type of the weights; keys, values and patches have it too."""
  return weights["text"]["embed"]["embedding"].dtype


def _padded(
  texts: Sequence[Text], count: int, length: int
) -> tuple[Int[np.ndarray, "P S"], Bool[np.ndarray, "P S"]]:
  """Returns `count` rows of tokens, each followed by padding, and where tokens are."""
  tokens, valid = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = text
    valid[row, : len(text)] = True
  return tokens, valid


def table_shapes(
  model: ModelConfig, mesh: Mesh, slots: int, tokens: int, dtype: Any
) -> PrefixTable:
  """Returns a table of `jax.ShapeDtypeStruct`s, its key-value heads sharded over the mesh."""
  text = model.text
  K = text.num_key_value_heads
  heads = NamedSharding(mesh, _heads(mesh, K))
  shape = (text.num_hidden_layers, slots, K, tokens, text.head_dim)
  kept: Any = jax.ShapeDtypeStruct(shape, dtype, sharding=heads)
  everywhere = sharding.replicated(mesh)
  valid: Any = jax.ShapeDtypeStruct((slots, tokens), jnp.bool_, sharding=everywhere)
  return PrefixTable(kept, kept, valid)


def _heads(mesh: Any, K: int) -> PartitionSpec:
  """Returns the PartitionSpec of keys and values by heads."""
  return PartitionSpec(None, None, sharding.divisible_axes(("tensor",), mesh, K))


@functools.partial(jax.jit, static_argnames="model")
def fill(
  weights: Params,
  table: PrefixTable,
  tokens: Int[Array | np.ndarray, "n S"],
  valid: Bool[Array | np.ndarray, "n S"],
  slots: Int[Array | np.ndarray, "n"],
  *,
  model: ModelConfig,
) -> PrefixTable:
  """Returns the table with the keys and values of texts in these slots; a slot beyond the table is left out."""
  valid = jnp.asarray(valid)
  keys, values = qwen3_vl.prefix_keys_values(weights, model, jnp.asarray(tokens), valid)
  table = PrefixTable(
    table.keys.at[:, slots].set(keys, mode="drop"),
    table.values.at[:, slots].set(values, mode="drop"),
    table.valid.at[slots].set(valid, mode="drop"),
  )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return table
  spec = _heads(mesh, model.text.num_key_value_heads)
  keys, values = jax.lax.with_sharding_constraint((table.keys, table.values), spec)
  return table.replace(keys=keys, values=values)
