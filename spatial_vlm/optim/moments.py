"""Optimizer moments in fewer bits: narrow storage between updates, arithmetic in float32.

  float32   4 bytes
  bfloat16  2 bytes
  float8    1 byte, and a float32 scale per row (last axis): first moments (and momentum) as float8_e4m3fn, second
            moments, which span twice as many powers of two, as float8_e5m2

Rounding is stochastic: the expected rounded value is the value itself. An average that moves by 1 − β₂ = 0.001 of its
distance moves by less than half of the last bit; rounding to nearest would stop it. 8-bit optimizers (Dettmers et al.,
arXiv 2110.02861) have a scale per block instead of per row, and round to nearest.
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
"""8-bit types of first and of second moments."""

MOMENTS: dict[type, dict[str, Any]] = {
  optax.ScaleByAdamState: {"mu": FIRST, "nu": SECOND},
  MuonState: {"mu": FIRST},
  optax.FactoredState: {"v": SECOND},  # of arrays too small to factor
}
"""Optax state that counts its updates -> its fields that are moments (one array per parameter), and their 8-bit type.

Other fields (counters; Adafactor's rows and columns) are small and keep their type."""

_SMALLEST_POWER = 2.0**-96
"""Lower bound of a row's power of two, so that the divisions in `to_float8` stay in float32's range."""


@flax.struct.dataclass
class Scaled:
  """A moment in 8 bits: codes · scale."""

  codes: Float[Array, "... F"]
  scale: Float[Array, "..."]
  """A power of two per row, so that an unchanged value is stored again without rounding."""


def store_moments(inner: optax.GradientTransformation, dtype: str) -> optax.GradientTransformation:
  """Returns `inner` with its MOMENTS stored as `dtype` between updates.

  The random bits of rounding are a function of the number of the update and of the array, so that a resumed run equals
  the uninterrupted one, on any mesh.

  Raises:
    ValueError: `dtype` is not in DTYPES.
  """
  if dtype not in DTYPES:
    raise ValueError(f"moments is {dtype!r}; choose one of {', '.join(DTYPES)}")
  if dtype == "float32":
    return inner

  def init(params):
    return _encode(inner.init(params), dtype)

  def update(updates, state, params=None):
    updates, state = inner.update(updates, _decode(state), params)
    return updates, _encode(state, dtype)

  return optax.GradientTransformation(init, update)


def _encode(state: Any, dtype: str) -> Any:
  numbers = itertools.count()  # numbers the moments in the order of the tree

  def encode(moment, float8, key):
    key = jax.random.fold_in(key, next(numbers))
    if dtype == "bfloat16":
      return stochastic_round(moment, jnp.bfloat16, key)
    return to_float8(moment, float8, key)

  def encode_fields(node):
    if type(node) not in MOMENTS:
      return node
    key = jax.random.fold_in(jax.random.key(0), Purpose.ROUNDING)
    key = jax.random.fold_in(key, node.count)
    return node._replace(
      **{
        field: jax.tree.map(lambda x, float8=float8: encode(x, float8, key), getattr(node, field))
        for field, float8 in MOMENTS[type(node)].items()
      }
    )

  return jax.tree.map(encode_fields, state, is_leaf=lambda node: type(node) in MOMENTS)


def _decode(state: Any) -> Any:
  def decode(leaf):
    if isinstance(leaf, Scaled):
      return from_float8(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

  return jax.tree.map(decode, state, is_leaf=lambda leaf: isinstance(leaf, Scaled))


def to_float8(x: Float[Array, "... F"], dtype: Any, key: PRNGKeyArray) -> Scaled:
  """Rounds `x` to an 8-bit type with a scale per row.

  The scale takes the row's largest magnitude to the upper half of the type's range, with room to round it up. A second
  moment other than zero becomes at least the smallest normal number of its row: a smaller one would vanish, and with it
  the denominator of the update; a larger denominator only makes the update smaller.
  """
  top = 2.0 ** (jnp.finfo(dtype).maxexp - 2)
  power = _power_of_two_below(jnp.max(jnp.abs(x), axis=-1))
  scale = jnp.maximum(power, _SMALLEST_POWER) / top
  codes = x / scale[..., None]
  if dtype == SECOND:
    smallest = float(jnp.finfo(dtype).smallest_normal)
    codes = jnp.where(codes > 0, jnp.maximum(codes, smallest), codes)
  return Scaled(stochastic_round(codes, dtype, key), scale)


def from_float8(stored: Scaled) -> Float[Array, "... F"]:
  """Returns codes · scale in float32; undoes `to_float8` except for its rounding."""
  return stored.codes.astype(jnp.float32) * stored.scale[..., None]


def stochastic_round(x: Float[Array, "..."], dtype: Any, key: PRNGKeyArray) -> Float[Array, "..."]:
  """Rounds `x` (float32) stochastically to a narrower type: each value to one of its two neighbours, with mean x.

  Adds a random number to the bits that the type lacks, then clears them. Below the type's smallest normal number its
  numbers are spaced as just above it, so such a value is moved there, rounded, and moved back. Values must lie within
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
  """Returns the largest power of two that does not exceed x ≥ 0; zero below float32's normal numbers."""
  return jax.lax.bitcast_convert_type(_bits(x) & jnp.uint32(0x7F800000), jnp.float32)


def _bits(x: Float[Array, "..."]) -> UInt32[Array, "..."]:
  return jax.lax.bitcast_convert_type(x, jnp.uint32)
