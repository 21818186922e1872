"""Axis glossary and the pytrees that travel between the parts.

  B  batch rows            T  tokens of a row        V  vocabulary
  D  width                 N  query heads            K  key-value heads      H  head width
  M  patches of a row      L  visual tokens (M / 4)  P  values of a patch
  G  samples of a group    S  slots of a key-value cache

Rows lead every array, so that one `data` axis shards them all. Shapes are static: whatever depends on image
sizes (coordinates, interpolation, segments) is made on the host by `processor/`.
"""

import enum
from typing import TYPE_CHECKING, Any, Protocol, Self

import flax.struct
from jaxtyping import Array, Bool, Float, Int

Params = dict[str, Any]
"""Nested dict of arrays; a stack of equal layers is one array with a leading layer axis."""


if TYPE_CHECKING:

  class Pytree:
    """Has the method that `flax.struct.dataclass` adds, which type checkers do not see."""

    def replace(self, **changes: Any) -> Self: ...

else:
  Pytree = object


class Device(Protocol):
  """What the package reads of a `jax.Device`, which type checkers take for a variable."""

  platform: str


class Purpose(enum.IntEnum):
  """Purpose of a random key, folded into the key of the run's seed: no two purposes share a stream."""

  WEIGHTS = 0
  ROLLOUT = 1
  ADAPTERS = 2
  ROUNDING = 3


@flax.struct.dataclass
class Vision:
  """Images and video frames of a batch, patches in 2×2 merge-block order, each row padded to M."""

  patches: Float[Array, "B M P"]
  segments: Int[Array, "B M"]
  """0 at padding; frames of a row are numbered from 1, and attention stays inside a frame."""
  coords: Int[Array, "B M 2"]
  """Row and column of the patch in its frame."""
  pos_index: Int[Array, "B M 4"]
  """Four neighbours in the learnt position grid (bilinear, corners aligned)."""
  pos_weight: Float[Array, "B M 4"]


@flax.struct.dataclass
class Batch:
  """Rows of tokens with their images; what the model reads and the loss scores."""

  tokens: Int[Array, "B T"]
  segments: Int[Array, "B T"]
  """0 at padding, else the number (from 1) of the sequence that the token belongs to."""
  targets: Bool[Array, "B T"]
  """True where the token is to be predicted from those before it (assistant turns, their end included)."""
  positions: Int[Array, "B T 3"]
  """M-RoPE positions: time, height, width."""
  vision: Vision | None
  """Row b of `vision` belongs to tokens b·R … b·R+R−1, where R = B / rows of `vision` (samples of one group
  share their images)."""


@flax.struct.dataclass
class Prompts:
  """Prompts to complete, one sequence a row, padded on the left: the answers follow the last column."""

  ids: Int[Array, "B"]
  """Number of the prompt in its source; random keys fold it in."""
  tokens: Int[Array, "B T"]
  segments: Int[Array, "B T"]
  positions: Int[Array, "B T 3"]
  vision: Vision | None
  label: Int[Array, "B"]
  """1 true, 0 false, −1 unknown."""


@flax.struct.dataclass
class Rollout(Pytree):
  """G sampled answers to each of B prompts. The prompts are not kept: they are read again by their numbers."""

  ids: Int[Array, "B"]
  """Numbers of the prompts in their stream."""
  label: Int[Array, "B"]
  """1 true, 0 false."""
  tokens: Int[Array, "B G T"]
  mask: Bool[Array, "B G T"]
  """True up to and including the end-of-turn token."""
  logp: Float[Array, "B G T"]
  """Log-probability of each token under the policy that sampled it."""
  verdict: Int[Array, "B G"]
  """1 yes, 0 no, −1 when the answer does not parse or was cut off."""
  correct: Bool[Array, "B G"]
  length_tokens: Int[Array, "B G"]
  advantage: Float[Array, "B G"]


@flax.struct.dataclass
class TrainState(Pytree):
  """The state that an update changes; `step` counts the updates."""

  step: Int[Array, ""]
  params: Params
  opt_state: Any


@flax.struct.dataclass
class RlState(Pytree):
  """The state of policy optimization between two sampling rounds."""

  train: TrainState
  batches: Int[Array, ""]
  """Policy batches finished."""
  cursor: Int[Array, ""]
  """Next prompt of the endless shuffled stream."""
  rounds: Int[Array, ""]
  """Sampling rounds spent on the batch being collected."""
  buffer: Rollout
  """Groups with mixed outcomes kept so far, in the first `filled` rows."""
  filled: Int[Array, ""]
  sampled: dict[str, tuple[Array, Array]]
  """(sum, count) over the groups that the rounds of this batch drew, before any was dropped."""
