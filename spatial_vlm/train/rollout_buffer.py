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
    prompts=prompts,
    tokens=tokens,
    mask=mask,
    logp=logp,
    verdict=verdict,
    correct=is_correct(verdict, prompts.label[:, None]),
    length_tokens=jnp.sum(mask, axis=-1),
    advantage=jnp.zeros(verdict.shape, jnp.float32),
  )


def completion_shapes(prompts: Prompts, settings: RlSettings) -> Completions:
  """Shapes of the completions of `prompts` (arrays or shapes)."""
  shape = (prompts.label.shape[0] * settings.group_size, settings.max_new_tokens)

  def leaf(dtype: DTypeLike) -> Any:  # stands in for an array
    return jax.ShapeDtypeStruct(shape, dtype)

  return Completions(tokens=leaf(jnp.int32), mask=leaf(jnp.bool_), logp=leaf(jnp.float32))


def rollout_shapes(prompts: Prompts, automaton: VerdictAutomaton, settings: RlSettings) -> Rollout:
  """Shapes of the groups of one round."""
  judge = functools.partial(judge_groups, group_size=settings.group_size)
  return jax.eval_shape(judge, prompts, completion_shapes(prompts, settings), automaton)


def empty_buffer(rollout: Rollout, groups: int) -> Rollout:
  """Returns zeros for `groups` groups of the shape of `rollout`: no mask, no advantage."""
  return jax.tree.map(lambda x: jnp.zeros((groups, *x.shape[1:]), x.dtype), rollout)


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


def init_state(train: Any, rollout: Rollout, settings: RlSettings) -> RlState:
  """Returns the state of a run that has drawn nothing.

  Args:
    train: the train state, its shapes, or None while the rest of the state is made.
    rollout: the shapes of a round's groups.
  """

  def zero() -> Array:
    return jnp.zeros((), jnp.int32)  # its own array each time, since the state is donated

  return RlState(
    train=train,
    batches=zero(),
    cursor=zero(),
    rounds=zero(),
    buffer=empty_buffer(rollout, settings.groups_per_batch),
    filled=zero(),
    sampled=metrics.zeros(jax.eval_shape(sampling_statistics, rollout)),
  )


def state_shardings(mesh: Mesh | AbstractMesh, state: RlState) -> RlState:
  """Sharding of every array of a run's state (arrays or shapes); the buffer is sharded as a batch."""
  where = jax.tree.map(lambda _: sharding.replicated(mesh), state)
  return where.replace(
    train=sharding.state_shardings(mesh, state.train),
    buffer=sharding.batch_sharding(mesh, state.buffer),
  )


def place_state(mesh: Mesh, train: TrainState, rollout: Rollout, settings: RlSettings) -> RlState:
  """Returns a fresh state over the mesh; `train` becomes part of it without a copy."""
  shapes = jax.eval_shape(lambda t: init_state(t, rollout, settings), train)
  rest = jax.jit(
    lambda: init_state(None, rollout, settings),
    out_shardings=state_shardings(mesh, shapes).replace(train=None),
  )
  return rest().replace(train=train)
