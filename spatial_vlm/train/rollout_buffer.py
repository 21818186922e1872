"""Dynamic sampling: rounds of judged groups, of which those with mixed outcomes fill a policy batch.

DAPO's Algorithm 1 keeps the groups that are neither all right nor all wrong. All state between two rounds lives in
`RlState`, so a run may stop between any two.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike
from jaxtyping import Array

from spatial_vlm import metrics, sharding
from spatial_vlm.metrics import Sums
from spatial_vlm.objectives.advantage import has_mixed_outcomes
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import VerdictAutomaton, verdicts
from spatial_vlm.rollout.sampler import Completions
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.update import constrain_state
from spatial_vlm.types import Prompts, RlState, Rollout, TrainState


@functools.partial(jax.jit, static_argnames="group_size")
def judge_groups(
  prompts: Prompts, completions: Completions, automaton: VerdictAutomaton, *, group_size: int
) -> Rollout:
  """Returns the completions as groups with their verdicts; advantages are still zero."""
  tokens, mask, logp = (x.reshape(-1, group_size, x.shape[-1]) for x in completions)
  verdict = verdicts(automaton, tokens, mask)
  return Rollout(
    ids=prompts.ids,
    label=prompts.label,
    tokens=tokens,
    mask=mask,
    logp=logp,
    verdict=verdict,
    correct=is_correct(verdict, prompts.label[:, None]),
    length_tokens=jnp.sum(mask, axis=-1),
    advantage=jnp.zeros(verdict.shape, jnp.float32),
  )


def rollout_shapes(groups: int, settings: RlSettings) -> Rollout:
  """Returns the shapes of so many groups."""

  def array(dtype: DTypeLike, *shape: int) -> Any:  # stands in for an array
    return jax.ShapeDtypeStruct((groups, *shape), dtype)

  group, tokens = settings.group_size, settings.max_new_tokens
  return Rollout(
    ids=array(jnp.int32),
    label=array(jnp.int32),
    tokens=array(jnp.int32, group, tokens),
    mask=array(jnp.bool_, group, tokens),
    logp=array(jnp.float32, group, tokens),
    verdict=array(jnp.int32, group),
    correct=array(jnp.bool_, group),
    length_tokens=array(jnp.int32, group),
    advantage=array(jnp.float32, group),
  )


def sampling_statistics(rollout: Rollout) -> Sums:
  """(sum, count) of a round before any group is dropped; counts are answers or groups."""
  right = jnp.sum(rollout.correct, axis=1)
  group_size = rollout.correct.shape[1]

  def total(x: Array) -> tuple[Array, Array]:
    return jnp.sum(x.astype(jnp.float32)), jnp.int32(x.size)

  return {
    "sampled/mixed_outcomes": total(has_mixed_outcomes(rollout.correct)),
    "sampled/accuracy": total(rollout.correct),
    "sampled/unparsed": total(rollout.verdict < 0),
    "sampled/yes": total(rollout.verdict == 1),
    "sampled/length_tokens": total(rollout.length_tokens),
    "sampled/all_right": total(right == group_size),
    "sampled/all_wrong": total(right == 0),
    "sampled/some_right": total(right > 0),
  }


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def collect(state: RlState, rollout: Rollout, *, settings: RlSettings) -> RlState:
  """Appends the groups with 0 < #correct < G to the buffer; surplus groups are dropped."""
  keep = has_mixed_outcomes(rollout.correct)
  slot = state.filled + jnp.cumsum(keep, dtype=jnp.int32) - 1
  slot = jnp.where(keep, slot, settings.groups_per_batch)  # out of range: dropped
  put = functools.partial(jax.tree.map, lambda kept, new: kept.at[slot].set(new, mode="drop"))
  kept = state.filled + jnp.sum(keep, dtype=jnp.int32)
  state = state.replace(
    cursor=state.cursor + keep.size,
    rounds=state.rounds + 1,
    buffer=put(state.buffer, rollout),
    filled=jnp.minimum(kept, settings.groups_per_batch),
    sampled=metrics.add(state.sampled, sampling_statistics(rollout)),
  )
  return constrain_state(state, state_shardings)


def init_state(train: Any, settings: RlSettings) -> RlState:
  """Returns the state of a run that has drawn nothing: its buffer has no mask and no advantage.

  `train` is the train state, its shapes, or None while the rest of the state is made.
  """
  buffer = rollout_shapes(settings.groups_per_batch, settings)

  def zero() -> Array:
    return jnp.zeros((), jnp.int32)  # its own array each time, since the state is donated

  return RlState(
    train=train,
    batches=zero(),
    cursor=zero(),
    rounds=zero(),
    buffer=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), buffer),
    filled=zero(),
    sampled=metrics.zeros(jax.eval_shape(sampling_statistics, buffer)),
  )


def state_shardings(mesh: Mesh | AbstractMesh, state: RlState) -> RlState:
  """Sharding of every array of a run's state (arrays or shapes); the buffer is sharded as a batch."""
  where = jax.tree.map(lambda _: sharding.replicated(mesh), state)
  return where.replace(
    train=sharding.state_shardings(mesh, state.train),
    buffer=sharding.batch_sharding(mesh, state.buffer),
  )


def place_state(mesh: Mesh, train: TrainState, settings: RlSettings) -> RlState:
  """Returns a fresh state over the mesh; `train` becomes part of it without a copy."""
  shapes = jax.eval_shape(lambda t: init_state(t, settings), train)
  rest = jax.jit(
    lambda: init_state(None, settings),
    out_shardings=state_shardings(mesh, shapes).replace(train=None),
  )
  return rest().replace(train=train)
