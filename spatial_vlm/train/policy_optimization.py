"""Policy optimization by groups: DAPO (arXiv 2503.14476, Algorithm 1) and its relatives.

One policy batch is collected in rounds (`rollout_buffer`). When `groups_per_batch` groups exist, or after
`max_rollout_rounds` rounds, the policy is updated on several mini-batches of them, each in programs of its own size.
OBJECTIVES and REWARDS say what is maximised; the config chooses and weights them.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from spatial_vlm import metrics, sharding
from spatial_vlm.metrics import PhaseClock, Sums
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import ReadPrompts
from spatial_vlm.objectives.advantage import group_advantage
from spatial_vlm.objectives.dapo import dapo_statistics
from spatial_vlm.objectives.policy_objectives import (
  objective_counts,
  reads_reference,
  weighted_gain,
)
from spatial_vlm.objectives.policy_terms import ClipRange, PolicyTerms, token_count
from spatial_vlm.parameters.lora import merge_adapters
from spatial_vlm.parameters.partition import NOTHING, combine
from spatial_vlm.rewards.table import RewardTerms, weighted_reward
from spatial_vlm.train.answer_scores import (
  Answers,
  answer_logprobs,
  cut_answers,
  join_answers,
  parts_of,
  read_prompts,
  shared_by_devices,
)
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.rollout_buffer import state_shardings
from spatial_vlm.train.update import (
  accumulate,
  apply_gradient,
  computed_in,
  constrain_state,
  cut_rows,
  join_rows,
  mean_gradient,
)
from spatial_vlm.types import Params, Prompts, RlState, Rollout, TrainState


class Constants(NamedTuple):
  """Arrays that updates read and never change."""

  forbidden_tokens: Bool[Array | np.ndarray, "V"]
  """Ids that are never sampled."""
  frozen: Params = NOTHING
  """Parameters that do not train."""
  reference: Params = NOTHING
  """The trainable parameters of the reference policy; empty where no objective reads it."""


class Minibatch(NamedTuple):
  """Some groups of a policy batch, and their prompts."""

  prompts: Prompts
  rollout: Rollout


class MinibatchScores(NamedTuple):
  """Log-probabilities that do not change while a mini-batch is learnt."""

  logp_old: Float[Array, "B G T"]
  """Under the policy before the first update; not read in the first mini-batch, which computes its own."""
  logp_reference: Float[Array, "B G T"] | None
  is_first: Bool[Array | np.ndarray, ""]
  """Whether no update has been made on this policy batch."""


class SharedByParts(NamedTuple):
  """What all parts of a mini-batch share."""

  is_first: Bool[Array | np.ndarray, ""]
  """As in `MinibatchScores`."""
  counts: dict[str, Int[Array, ""]]
  """Divisors of the objectives over the whole mini-batch."""


def rollout_weights(params: Params, frozen: Params, dtype: str) -> Params:
  """Returns the parameters that a round of sampling reads.

  LoRA is merged once per round, not per token, which costs a second copy of its kernels. Int8 kernels are not copied:
  each layer dequantizes its own for every token.
  """
  return merge_adapters(computed_in(dtype, combine(params, frozen)))


def rollout_weight_shapes(mesh: Mesh, trained: Params, frozen: Params, dtype: str) -> Params:
  """Returns the shapes of the rollout weights, sharded over the sampling mesh.

  They are sharded by heads and hidden units there. Sharded by width, as for training, every token of an answer would
  gather the whole model.
  """
  convert = functools.partial(rollout_weights, dtype=dtype)
  return sharding.with_param_shardings(mesh, jax.eval_shape(convert, trained, frozen))


def rollout_weight_placer(
  mesh: Mesh, trained: Params, frozen: Params, dtype: str
) -> jax.stages.Wrapped:
  """Returns the program (trained, frozen) -> rollout weights over the sampling mesh, for weights of these shapes."""
  shapes = rollout_weight_shapes(mesh, trained, frozen, dtype)
  where = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  return jax.jit(functools.partial(rollout_weights, dtype=dtype), out_shardings=where)


def reference_policy(mesh: Mesh, trained: Params, settings: RlSettings) -> Params:
  """Returns a copy of the trainable parameters in the computation's type, where an objective reads a reference policy.

  Call it before the first update, which overwrites `trained`.
  """
  if not reads_reference(settings.objectives):
    return NOTHING
  copy = functools.partial(computed_in, settings.dtype)
  return jax.jit(copy, out_shardings=sharding.param_shardings(mesh, trained))(trained)


def shaped_reward(rollout: Rollout, settings: RlSettings) -> Float[Array, "B G"]:
  """Returns the weighted sum of the rewards that the config chooses."""
  terms = RewardTerms(
    verdict=rollout.verdict,
    label=rollout.label[:, None],
    length_tokens=rollout.length_tokens,
    max_new_tokens=settings.max_new_tokens,
    overlong_cache_tokens=settings.overlong_cache_tokens,
  )
  return weighted_reward(settings.rewards, terms)


def negative_objective(
  trained: tuple[Params, ReadPrompts],
  prompts: Prompts,
  answers: Answers,
  shared: SharedByParts,
  constants: Constants,
  model: ModelConfig,
  settings: RlSettings,
) -> tuple[Float[Array, ""], Sums]:
  """Returns −Σ of the objectives over some answers, and what to report of them.

  Nothing has moved in the first mini-batch of a policy batch: old := stop_gradient(logp), so that r is exactly 1.

  Args:
    trained: trainable parameters, and what they read of the prompts.
  """
  params, read = trained
  clip = ClipRange(settings.eps_low, settings.eps_high)
  every, forbidden = combine(params, constants.frozen), constants.forbidden_tokens
  logp, entropy = answer_logprobs(every, prompts, read, answers, forbidden, model, settings)
  rows = jax.tree.map(lambda x: x.reshape(len(logp), *x.shape[2:]), answers)
  old = jnp.where(shared.is_first, jax.lax.stop_gradient(logp), rows.logp_old)
  terms = PolicyTerms(logp, old, rows.logp_reference, rows.advantage, rows.mask)
  gain, gains = weighted_gain(settings.objectives, terms, clip, shared.counts)
  sums = {"policy_objective": (gain, token_count(rows.mask))}
  if len(gains) > 1:
    sums |= {f"objective/{name}": of_part for name, of_part in gains.items()}
  sums |= dapo_statistics(logp, old, rows.advantage, rows.mask, entropy, *clip)
  return -gain, sums | {"rollout_logprob_gap": logprob_gap(rows.logp_sampler, old, rows.mask)}


def minibatch_gradient(
  params: Params,
  minibatch: Minibatch,
  scores: MinibatchScores,
  constants: Constants,
  model: ModelConfig,
  settings: RlSettings,
) -> tuple[Params, Sums]:
  """Returns the gradient of `negative_objective` over a mini-batch, summed over its parts, and the sums."""
  rollout = minibatch.rollout
  groups, group_size, length = rollout.mask.shape
  parts = parts_of(groups, group_size, settings.micro_batches)
  counts = objective_counts(settings.objectives, rollout.mask.reshape(-1, length))
  shared = SharedByParts(scores.is_first, counts)

  def of_groups(params, part):
    """The chain rule through the prompts: their part of the model runs once, forward and backward."""
    prompts, answers = shared_by_devices(*part)

    def read(params):
      return read_prompts(combine(params, constants.frozen), prompts, model, settings)

    def of_answers(trained, answers):
      return jax.grad(negative_objective, has_aux=True)(
        trained, prompts, answers, shared, constants, model, settings
      )

    of_prompts, backward = jax.vjp(read, params)
    pieces = cut_answers(answers, parts.answers)
    (d_params, d_read), sums = accumulate(of_answers, (params, of_prompts), pieces)
    d_read = jax.tree.map(lambda d, x: d.astype(x.dtype), d_read, of_prompts)
    return jax.tree.map(jnp.add, d_params, backward(d_read)[0]), sums

  answers = Answers(
    tokens=rollout.tokens,
    mask=rollout.mask,
    logp_sampler=rollout.logp,
    logp_old=scores.logp_old,
    logp_reference=scores.logp_reference,
    advantage=rollout.advantage,
  )
  return accumulate(of_groups, params, cut_rows((minibatch.prompts, answers), parts.groups))


def rl_step(
  state: TrainState,
  minibatch: Minibatch,
  scores: MinibatchScores,
  constants: Constants,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: RlSettings,
) -> tuple[TrainState, Sums]:
  """Returns the state after one update on a mini-batch, normalised by its global number of answer tokens.

  A mini-batch without any token leaves the state as it is.
  """
  grads, sums = minibatch_gradient(state.params, minibatch, scores, constants, model, settings)
  count = sums["policy_objective"][1]
  grads = mean_gradient(grads, count)
  updated = apply_gradient(state, grads, optimizer)
  state = jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), updated, state)
  state = constrain_state(state, sharding.state_shardings)
  return state, sums | {"grad_norm": (optax.tree.norm(grads), jnp.ones((), jnp.int32))}


step_on_minibatch = jax.jit(
  rl_step, static_argnames=("model", "optimizer", "settings"), donate_argnames="state"
)


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def score_minibatch(
  params: Params,
  minibatch: Minibatch,
  constants: Constants,
  *,
  model: ModelConfig,
  settings: RlSettings,
) -> Float[Array, "B G T"]:
  """Returns the log-probabilities of a mini-batch under a policy."""
  every = combine(params, constants.frozen)
  rollout = minibatch.rollout
  groups, group_size, _ = rollout.mask.shape
  parts = parts_of(groups, group_size, settings.micro_batches)

  def score_groups(of_part: tuple[Prompts, Answers]) -> Float[Array, "b G T"]:
    prompts, answers = shared_by_devices(*of_part)
    read = read_prompts(every, prompts, model, settings)

    def score(answers: Answers) -> Float[Array, "B g T"]:
      logp, _ = answer_logprobs(
        every, prompts, read, answers, constants.forbidden_tokens, model, settings
      )
      return logp.reshape(answers.mask.shape)

    return join_answers(jax.lax.map(score, cut_answers(answers, parts.answers)), group_size)

  pieces = cut_rows((minibatch.prompts, Answers(rollout.tokens, rollout.mask)), parts.groups)
  logp = join_rows(jax.lax.map(score_groups, pieces))
  # As the sampler's, which the first mini-batch has in their place.
  return sharding.constrain_rows(logp)


class PolicyBatch(NamedTuple):
  """The collected groups with their advantages, and what the host must know of them."""

  rollout: Rollout
  sums: Sums
  numbers: Int[Array, "B"]
  """Numbers of the prompts."""
  longest: Int[Array, "n"]
  """Tokens of the longest answer of each mini-batch."""


@functools.partial(jax.jit, static_argnames="settings")
def policy_batch(state: RlState, *, settings: RlSettings) -> PolicyBatch:
  """Computes the advantages of the collected groups; groups that are missing have no mask and no advantage."""
  kept = (jnp.arange(settings.groups_per_batch) < state.filled)[:, None]
  reward = shaped_reward(state.buffer, settings)
  rollout = state.buffer.replace(
    mask=state.buffer.mask & kept[..., None],
    advantage=jnp.where(kept, group_advantage(reward, state.buffer.correct), 0.0),
  )
  once = jnp.ones((), jnp.int32)
  sums = kept_statistics(rollout, reward, kept) | state.sampled
  sums["rounds"] = (state.rounds.astype(jnp.float32), once)
  sums["kept/groups"] = (state.filled.astype(jnp.float32), once)
  lengths = jnp.sum(rollout.mask, axis=-1, dtype=jnp.int32)
  longest = jnp.max(cut_rows(lengths, settings.minibatches), axis=(1, 2))
  numbers, longest = sharding.constrain_replicated((rollout.ids, longest))
  return PolicyBatch(sharding.constrain_rows(rollout), sums, numbers, longest)


@functools.partial(jax.jit, static_argnames=("length", "settings"))
def take_minibatch(
  rollout: Rollout, number: Int[Array, ""], *, length: int, settings: RlSettings
) -> Rollout:
  """Returns a mini-batch of the policy batch (see `cut_rows`), its answers cut to `length` tokens."""
  part = jax.tree.map(lambda x: x[number], cut_rows(rollout, settings.minibatches))
  cut = {name: getattr(part, name)[..., :length] for name in ("tokens", "mask", "logp")}
  return sharding.constrain_rows(part.replace(**cut))


def scorings(settings: RlSettings) -> int:
  """Returns how many mini-batches are scored before the updates: all but the first, and all by a reference policy."""
  policies = 2 if reads_reference(settings.objectives) else 1
  return policies * settings.minibatches - 1


def update_policy(
  state: RlState,
  prompts_of: Callable[[Sequence[int]], Prompts],
  constants: Constants,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: RlSettings,
  clock: PhaseClock,
) -> tuple[RlState, Sums]:
  """Makes `minibatches` updates in turn on the collected groups, and empties the buffer.

  Each mini-batch has the padded sizes that its own prompts and answers need.

  Args:
    state: is donated.
    prompts_of: numbers of prompts -> these prompts over the training mesh.
    constants: arrays that the update reads.
    model, optimizer, settings: constants of the programs.
    clock: measures the phases.
  """
  minibatches = settings.minibatches
  with clock.phase("time/old_logprobs_s"):
    batch = policy_batch(state, settings=settings)
    numbers, longest = jax.device_get((batch.numbers, batch.longest))
    pieces = [
      Minibatch(
        prompts_of(numbers[i::minibatches]),
        take_minibatch(
          batch.rollout, i, length=settings.answer_length(longest[i]), settings=settings
        ),
      )
      for i in range(minibatches)
    ]
    score = functools.partial(score_minibatch, model=model, settings=settings)
    old = [pieces[0].rollout.logp]  # not read, see `negative_objective`
    old += [score(state.train.params, piece, constants) for piece in pieces[1:]]
    reference = [None] * minibatches
    if reads_reference(settings.objectives):
      reference = [score(constants.reference, piece, constants) for piece in pieces]
    jax.block_until_ready((old, reference))
  with clock.phase("time/update_s"):
    train, sums = state.train, batch.sums
    for i, piece in enumerate(pieces):
      scores = MinibatchScores(old[i], reference[i], np.array(i == 0))
      train, of_minibatch = step_on_minibatch(
        train, piece, scores, constants, model=model, optimizer=optimizer, settings=settings
      )
      sums = metrics.add(sums, of_minibatch)
    state = start_next_batch(state.replace(train=train))
    jax.block_until_ready(state.batches)
  return state, sums


@functools.partial(jax.jit, donate_argnames="state")
def start_next_batch(state: RlState) -> RlState:
  """Empties the buffer; its old rows stay and are overwritten."""
  state = state.replace(
    batches=state.batches + 1,
    rounds=jnp.zeros_like(state.rounds),
    filled=jnp.zeros_like(state.filled),
    sampled=metrics.zeros(state.sampled),
  )
  return constrain_state(state, state_shardings)


def kept_statistics(
  rollout: Rollout, reward: Float[Array, "B G"], kept: Bool[Array, "B 1"]
) -> Sums:
  """(sum, count) over the answers that the update sees."""
  answers = jnp.sum(kept, dtype=jnp.int32) * reward.shape[1]

  def total(x):
    return jnp.sum(jnp.where(kept, x, 0).astype(jnp.float32)), answers

  return {
    "kept/reward": total(reward),
    "kept/accuracy": total(rollout.correct),
    "kept/length_tokens": total(rollout.length_tokens),
  }


def logprob_gap(
  logp_sampler: Float[Array, "R T"], logp_trainer: Float[Array, "R T"], mask: Bool[Array, "R T"]
) -> tuple[Array, Array]:
  """Σ|log π_sampler − log π_trainer| over the answers' tokens, and their number: the same weights, two programs."""
  gap = jnp.where(mask, jnp.abs(logp_sampler - logp_trainer), 0.0)
  return jnp.sum(gap), token_count(mask)


def rl_loop(
  state: RlState,
  sample: Callable[[Params, int], Rollout],
  collect_round: Callable[[RlState, Rollout], RlState],
  update: Callable[[RlState], tuple[RlState, Sums]],
  settings: RlSettings,
  steps: int,
) -> Iterator[tuple[RlState, Sums | None]]:
  """Yields after every sampling round (no sums) and after every policy batch (its sums), for `steps` batches.

  `sample(params, cursor)` answers the next round of prompts. After `max_rollout_rounds` rounds the update takes the
  groups that exist, even none: a hard or solved task slows learning down, it does not end the run.
  """
  while int(state.batches) < steps:
    wanted = settings.groups_per_batch
    if int(state.filled) < wanted and int(state.rounds) < settings.max_rollout_rounds:
      rollout = sample(state.train.params, int(state.cursor))
      state = collect_round(state, rollout)
      yield state, None
    else:
      state, sums = update(state)
      yield state, sums
