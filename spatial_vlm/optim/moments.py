"""Moments of an optimizer in fewer bits: stored narrow between two updates, computed with in float32.

  float32   4 bytes
  bfloat16  2 bytes
  float8    1 byte, and a float32 scale for each row (last axis): first moments (and momentum) as float8_e4m3fn, second
            moments, which span twice as many powers of two, as float8_e5m2

Values are rounded up or down by chance, so that their mean is the value: an average that moves by 1 − β₂ = 0.001 of
its distance moves by less than half of the last bit, and by rounding to the nearest it would stand still. Cf. 8-bit
optimizers (Dettmers et al., arXiv 2110.02861), which have blocks where this has rows, and round to the nearest.
"""

import itertools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, UInt32
from optax.contrib import MuonState

from spatial_vlm.types import Purpose

DTYPES = ("float32", "bfloat16", "float8")

FIRST, SECOND = jnp.float8_e4m3fn, jnp.float8_e5m2
"""Types of eight bits for a first and for a second moment."""

MOMENTS: dict[type, dict[str, Any]] = {
  optax.ScaleByAdamState: {"mu": FIRST, "nu": SECOND},
  MuonState: {"mu": FIRST},
  optax.FactoredState: {"v": SECOND},  # of what is too small to be factored
}
"""State of an optax transformation that counts its updates -> those of its fields that are moments, one array for each
parameter. All else (counters; Adafactor's rows and columns) is small and stays as it is."""

_SMALLEST_POWER = 2.0**-96
"""Rows with no larger value have this scale's: no quotient below then leaves float32's range."""


@flax.struct.dataclass
class Scaled:
  """A moment in eight bits: codes · scale."""

  codes: Float[Array, "... F"]
  scale: Float[Array, "..."]
  """Of each row, a power of two: what does not change is stored again without any rounding."""


def stored(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
  """`inner`, whose MOMENTS are stored as `dtype` between updates.

  The chance of rounding is a function of the number of the update and of the array, so that a resumed run equals the
  uninterrupted one, on any mesh. Raises ValueError for a type that is not in DTYPES.
  """
  if dtype not in DTYPES:
    raise ValueError(f"moments is {dtype!r}; choose one of {', '.join(DTYPES)}")
  if dtype == "float32":
    return inner

  def init(params):
    return _encoded(inner.init(params), dtype)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, _decoded(state), params)
    return updates, _encoded(state, dtype)

  return optax.GradientTransformation(init, update)


def _encoded(state: Any, dtype: str) -> Any:
  numbers = itertools.count()  # of the moments, in the order of the tree

  def encode(moment, eight_bits, key):
    key = jax.random.fold_in(key, next(numbers))
    if dtype == "bfloat16":
      return stochastically_rounded(moment, jnp.bfloat16, key)
    return in_eight_bits(moment, eight_bits, key)

  def encode_fields(node):
    if type(node) not in MOMENTS:
      return node
    key = jax.random.fold_in(jax.random.key(0), Purpose.ROUNDING)
    key = jax.random.fold_in(key, node.count)
    return node._replace(
      **{
        field: jax.tree.map(lambda x, bits=bits: encode(x, bits, key), getattr(node, field))
        for field, bits in MOMENTS[type(node)].items()
      }
    )

  return jax.tree.map(encode_fields, state, is_leaf=lambda node: type(node) in MOMENTS)


def _decoded(state: Any) -> Any:
  def decode(leaf):
    if isinstance(leaf, Scaled):
      return from_eight_bits(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

  return jax.tree.map(decode, state, is_leaf=lambda leaf: isinstance(leaf, Scaled))


def in_eight_bits(x: Float[Array, "... F"], dtype: Any, key: PRNGKeyArray) -> Scaled:
  """Each row of `x` over the scale that takes its largest magnitude to the upper half of the type's range, with room
  left to round it up.

  A second moment other than zero is at least the smallest normal number of its row: smaller ones would be lost, and
  with them the denominator of the update; a larger denominator only makes the update smaller.
  """
  top = 2.0 ** (jnp.finfo(dtype).maxexp - 2)
  power = _power_of_two_below(jnp.max(jnp.abs(x), axis=-1))
  scale = jnp.maximum(power, _SMALLEST_POWER) / top
  codes = x / scale[..., None]
  if dtype == SECOND:
    smallest = float(jnp.finfo(dtype).smallest_normal)
    codes = jnp.where(codes > 0, jnp.maximum(codes, smallest), codes)
  return Scaled(stochastically_rounded(codes, dtype, key), scale)


def from_eight_bits(stored: Scaled) -> Float[Array, "... F"]:
  """Undoes `in_eight_bits`, rounding apart."""
  return stored.codes.astype(jnp.float32) * stored.scale[..., None]


def stochastically_rounded(
  x: Float[Array, "..."], dtype: Any, key: PRNGKeyArray
) -> Float[Array, "..."]:
  """One of the two neighbours of each value of `x` (float32) in a narrower type, with the mean x.

  Adds a random number to the bits that the type lacks, and cuts them off. Below the type's smallest normal number its
  numbers lie as far apart as just above it: the value is moved there, rounded, and moved back. Values must lie within
  the type's range.
  """
  tiny = float(jnp.finfo(dtype).smallest_normal)
  moved = jnp.where(jnp.abs(x) < tiny, jnp.copysign(tiny, x), 0.0)
  lacking = jnp.finfo(jnp.float32).nmant - jnp.finfo(dtype).nmant
  chance = jax.random.bits(key, x.shape, jnp.uint32) >> (32 - lacking)
  bits = _bits(x + moved) + chance
  cut = jax.lax.bitcast_convert_type(bits & ~jnp.uint32(2**lacking - 1), jnp.float32)
  return (cut - moved).astype(dtype)


def _power_of_two_below(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """The largest power of two that does not exceed x ≥ 0; zero below float32's normal numbers."""
  return jax.lax.bitcast_convert_type(_bits(x) & jnp.uint32(0x7F800000), jnp.float32)


def _bits(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
  return jax.lax.bitcast_convert_type(x, jnp.uint32)
