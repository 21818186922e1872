"""DAPO: Decoupled Clip and Dynamic sAmpling Policy Optimization (arXiv 2503.14476), Algorithm 1.

One batch is collected in rounds: sample G answers to each of some prompts, keep the groups that are neither all
right nor all wrong. When `prompts` groups are there, or after `max_rounds` rounds, the policy is updated on several
mini-batches of them. Whatever a round leaves behind lives in `DapoState`, so a run may stop between any two.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from spatial_vlm import metrics, sharding
from spatial_vlm.config import Config, UsageError, check_positive
from spatial_vlm.metrics import Sums
from spatial_vlm.model import qwen3_vl
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.objectives.advantage import group_advantage, informative
from spatial_vlm.objectives.dapo import dapo_objective, dapo_statistics, overlong_penalty
from spatial_vlm.objectives.token_logprobs import token_logprobs
from spatial_vlm.parameters.lora import merged
from spatial_vlm.parameters.partition import NOTHING, join
from spatial_vlm.rewards.verdict_automaton import (
  AnswerAutomaton,
  accuracy_reward,
  is_correct,
  verdicts,
)
from spatial_vlm.rollout.sampler import generate
from spatial_vlm.train.run import check_training
from spatial_vlm.train.update import (
  accumulate,
  apply_gradient,
  computed_in,
  cut_rows,
  join_rows,
  laid_out,
  mean_gradient,
)
from spatial_vlm.types import Batch, DapoState, Params, Prompts, Rollout, TrainState


@dataclasses.dataclass(frozen=True)
class DapoSettings:
  """What is compiled into rounds and updates.

  prompts: groups of one policy batch; samples: G, answers to each; round_prompts: prompts drawn in a round;
  max_rounds: rounds after which the update takes what there is; minibatches: updates per batch;
  eps_low, eps_high: clip range 1−ε_low … 1+ε_high; max_tokens, overlong_cache_tokens: L_max and L_cache of Eq. 13.
  """

  prompts: int
  samples: int
  round_prompts: int
  max_rounds: int
  minibatches: int
  micro_batches: int
  eps_low: float
  eps_high: float
  max_tokens: int
  overlong_cache_tokens: int
  temperature: float
  chunk_tokens: int
  remat: str
  dtype: str
  eos: int
  pad: int


SAMPLED_SUMS = tuple(
  f"sampled/{name}"
  for name in (
    "informative",
    "accuracy",
    "unparsed",
    "yes",
    "length_tokens",
    "all_right",
    "all_wrong",
    "some_right",
  )
)
UPDATE_SUMS = (
  "objective", "clip_low", "clip_high", "clip_high_prob", "ratio", "ratio_max", "kl_old", "prob", "entropy", "grad_norm"
)  # fmt: skip


def no_sums(names: tuple[str, ...]) -> Sums:
  return {name: (jnp.zeros(()), jnp.zeros((), jnp.int32)) for name in names}


def sampling_params(params: Params, frozen: Params, dtype: str) -> Params:
  """The parameters as answers are sampled from them, for a whole round.

  Low-rank pairs are merged once, not for every token: sampling holds another copy of the kernels they belong to. Where
  these are in int8, there is no room for it: each token makes the kernels anew, layer by layer.
  """
  return merged(computed_in(dtype, join(params, frozen)))


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def sample_groups(
  params: Params,
  prompts: Prompts,
  key: PRNGKeyArray,
  automaton: AnswerAutomaton,
  banned: Bool[Array, "V"],
  *,
  model: ModelConfig,
  settings: DapoSettings,
) -> Rollout:
  """G answers to every prompt with their verdicts; advantages are still zero. `params` are `sampling_params`."""
  completions = generate(
    params,
    prompts,
    key,
    banned,
    model=model,
    samples=settings.samples,
    max_tokens=settings.max_tokens,
    temperature=settings.temperature,
    eos=settings.eos,
    pad=settings.pad,
  )
  tokens, mask, logp = (x.reshape(-1, settings.samples, x.shape[-1]) for x in completions)
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


def empty_buffer(rollout: Rollout, prompts: int) -> Rollout:
  """Room for `prompts` groups of the shape of `rollout`, nothing in it (no mask, no advantage)."""
  return jax.tree.map(lambda x: jnp.zeros((prompts, *x.shape[1:]), x.dtype), rollout)


def sampling_statistics(rollout: Rollout) -> Sums:
  """(sum, count) of a round before groups are left out; counts are answers or groups."""
  right = jnp.sum(rollout.correct, axis=1)
  samples = rollout.correct.shape[1]

  def total(x):
    return jnp.sum(x.astype(jnp.float32)), jnp.int32(x.size)

  return {
    "sampled/informative": total(informative(rollout.correct)),
    "sampled/accuracy": total(rollout.correct),
    "sampled/unparsed": total(rollout.verdict < 0),
    "sampled/yes": total(rollout.verdict == 1),
    "sampled/length_tokens": total(rollout.length_tokens),
    "sampled/all_right": total(right == samples),
    "sampled/all_wrong": total(right == 0),
    "sampled/some_right": total(right > 0),
  }


@functools.partial(jax.jit, static_argnames="settings", donate_argnames="state")
def collect(state: DapoState, rollout: Rollout, *, settings: DapoSettings) -> DapoState:
  """Puts the informative groups (0 < #correct < G) behind those already kept; surplus ones are dropped."""
  keep = informative(rollout.correct)
  slot = state.filled + jnp.cumsum(keep, dtype=jnp.int32) - 1
  slot = jnp.where(keep, slot, settings.prompts)  # out of range: left out
  put = functools.partial(jax.tree.map, lambda kept, new: kept.at[slot].set(new, mode="drop"))
  kept = state.filled + jnp.sum(keep, dtype=jnp.int32)
  state = state.replace(
    cursor=state.cursor + keep.size,
    rounds=state.rounds + 1,
    buffer=put(state.buffer, rollout),
    filled=jnp.minimum(kept, settings.prompts),
    sampled=metrics.add(state.sampled, sampling_statistics(rollout)),
  )
  return laid_out(state, state_shardings)


def completion_batch(rollout: Rollout) -> Batch:
  """Prompts followed by their answers as rows of a `Batch`; the answers' tokens are the targets.

  Positions go on as in decoding: one more than the largest of the prompt, the same on the three axes.
  """
  prompts, (_, samples, length) = rollout.prompts, rollout.tokens.shape
  real = (prompts.segments > 0)[..., None]
  start = jnp.max(jnp.where(real, prompts.positions, 0), axis=(1, 2)) + 1
  answer_positions = start[:, None] + jnp.arange(length)[None]

  def rows(of_prompt, of_answer):
    return jnp.concatenate([jnp.repeat(of_prompt, samples, axis=0), of_answer], axis=1)

  tokens = rollout.tokens.reshape(-1, length)
  mask = rollout.mask.reshape(-1, length)
  positions = jnp.repeat(answer_positions, samples, axis=0)[..., None]
  return Batch(
    tokens=rows(prompts.tokens, tokens),
    segments=rows(prompts.segments, mask.astype(prompts.segments.dtype)),
    targets=rows(jnp.zeros_like(prompts.tokens, bool), mask),
    positions=rows(prompts.positions, jnp.broadcast_to(positions, (*tokens.shape, 3))),
    vision=prompts.vision,
  )


def answer_logprobs(
  params: Params,
  rollout: Rollout,
  banned: Bool[Array, "V"],
  model: ModelConfig,
  settings: DapoSettings,
) -> tuple[Float[Array, "R T"], Float[Array, "R T"]]:
  """log π_θ and entropy of every token of every answer (R = B·G rows), over the ids that may be sampled."""
  length = rollout.tokens.shape[-1]
  params = computed_in(settings.dtype, params)
  batch = sharding.spread(
    completion_batch(rollout)
  )  # fewer groups than devices may have rows for all
  hidden = qwen3_vl.forward(params, model, batch, settings.remat)
  answer = slice(
    -length - 1, None
  )  # from the last token of the prompt on: it predicts the first of the answer
  logp, entropy = token_logprobs(
    hidden[:, answer],
    qwen3_vl.unembedding(params, model).T,
    batch.tokens[:, answer],
    banned,
    temperature=settings.temperature,
    chunk=settings.chunk_tokens,
  )
  return logp[:, 1:], entropy[:, 1:]


def shaped_reward(rollout: Rollout, settings: DapoSettings) -> Float[Array, "B G"]:
  """Raw accuracy (±1) plus the soft overlong punishment in tokens (Eq. 13)."""
  penalty = overlong_penalty(
    rollout.length_tokens, settings.max_tokens, settings.overlong_cache_tokens
  )
  return accuracy_reward(rollout.verdict, rollout.prompts.label[:, None]) + penalty


def dapo_step(
  state: TrainState,
  minibatch: Rollout,
  logp_old: Float[Array, "B G T"],
  first: Bool[Array, ""],
  banned: Bool[Array, "V"],
  frozen: Params = NOTHING,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: DapoSettings,
) -> tuple[TrainState, Sums]:
  """One update on a mini-batch, normalised by its global number of answer tokens.

  In the first mini-batch of a batch nothing has moved yet: old := stop_gradient(logp), so r is exactly 1. A
  mini-batch without any token leaves the state as it is.
  """

  def loss(params, cut):
    rollout, old = cut
    logp, entropy = answer_logprobs(join(params, frozen), rollout, banned, model, settings)
    old = jnp.where(first, jax.lax.stop_gradient(logp), old.reshape(logp.shape))
    mask = rollout.mask.reshape(logp.shape)
    advantage = rollout.advantage.reshape(-1)
    gain, count = dapo_objective(logp, old, advantage, mask, settings.eps_low, settings.eps_high)
    statistics = dapo_statistics(
      logp, old, advantage, mask, entropy, settings.eps_low, settings.eps_high
    )
    return -gain, {"objective": (gain, count)} | statistics

  grads, sums = accumulate(loss, state.params, (minibatch, logp_old), settings.micro_batches)
  count = sums["objective"][1]
  grads = mean_gradient(grads, count)
  updated = apply_gradient(state, grads, optimizer)
  state = jax.tree.map(lambda new, old: jnp.where(count > 0, new, old), updated, state)
  return state, sums | {"grad_norm": (optax.tree.norm(grads), jnp.ones((), jnp.int32))}


@functools.partial(
  jax.jit, static_argnames=("model", "optimizer", "settings"), donate_argnames="state"
)
def update(
  state: DapoState,
  banned: Bool[Array, "V"],
  frozen: Params = NOTHING,
  *,
  model: ModelConfig,
  optimizer: optax.GradientTransformation,
  settings: DapoSettings,
) -> tuple[DapoState, Sums]:
  """Advantages of the collected groups, then `minibatches` updates in turn; the buffer is empty afterwards."""
  kept = (jnp.arange(settings.prompts) < state.filled)[:, None]
  rollout = state.buffer
  reward = shaped_reward(rollout, settings)
  rollout = rollout.replace(
    mask=rollout.mask & kept[..., None],
    advantage=jnp.where(kept, group_advantage(reward, rollout.correct), 0.0),
  )

  def log_probabilities(part: Rollout) -> Float[Array, "B G T"]:
    params = join(state.train.params, frozen)
    return answer_logprobs(params, part, banned, model, settings)[0].reshape(part.logp.shape)

  minibatches = cut_rows(rollout, settings.minibatches)
  pieces = cut_rows(rollout, settings.minibatches * settings.micro_batches)
  logp_old = cut_rows(join_rows(jax.lax.map(log_probabilities, pieces)), settings.minibatches)

  def one(carry, part):
    train, sums = carry
    i, minibatch, old = part
    train, of_minibatch = dapo_step(
      *(train, minibatch, old, i == 0, banned, frozen),
      model=model,
      optimizer=optimizer,
      settings=settings,
    )
    return (train, metrics.add(sums, of_minibatch)), None

  numbers = jnp.arange(settings.minibatches)
  carry = (state.train, no_sums(UPDATE_SUMS))
  (train, sums), _ = jax.lax.scan(one, carry, (numbers, minibatches, logp_old))
  sums |= kept_statistics(rollout, reward, kept) | state.sampled
  sums["sampler_mismatch"] = mismatch(minibatches, logp_old)
  once = jnp.ones((), jnp.int32)
  sums["rounds"] = (state.rounds.astype(jnp.float32), once)
  sums["kept/groups"] = (state.filled.astype(jnp.float32), once)
  state = state.replace(
    train=train,
    batches=state.batches + 1,
    rounds=jnp.zeros_like(state.rounds),
    filled=jnp.zeros_like(state.filled),
    sampled=no_sums(SAMPLED_SUMS),
  )
  return laid_out(state, state_shardings), sums


def init_state(train: TrainState, rollout: Rollout, settings: DapoSettings) -> DapoState:
  """A run that has drawn nothing yet; `rollout` (arrays or shapes) tells the shape of a round's groups."""

  def zero():
    return jnp.zeros((), jnp.int32)  # an array of its own each time: the state is donated

  return DapoState(
    train=train,
    batches=zero(),
    cursor=zero(),
    rounds=zero(),
    buffer=empty_buffer(rollout, settings.prompts),
    filled=zero(),
    sampled=no_sums(SAMPLED_SUMS),
  )


def state_shardings(mesh: Mesh | AbstractMesh, state: DapoState) -> DapoState:
  """Sharding of every array of a run's state (or of its shapes): the buffer lies like a batch."""
  where = jax.tree.map(lambda _: sharding.replicated(mesh), state)
  return where.replace(
    train=sharding.state_shardings(mesh, state.train),
    buffer=sharding.batch_sharding(mesh, state.buffer),
  )


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


def mismatch(minibatches: Rollout, logp_trainer: Float[Array, "n B G T"]) -> tuple[Array, Array]:
  """Σ|log π_sampler − log π_trainer| over the answers' tokens, and their number: the same weights, two programs."""
  gap = jnp.where(minibatches.mask, jnp.abs(minibatches.logp - logp_trainer), 0.0)
  return jnp.sum(gap), jnp.sum(minibatches.mask, dtype=jnp.int32)


def dapo_loop(
  state: DapoState,
  prompts_at: Callable[[int], Prompts],
  sample: Callable[[Params, Prompts, int], Rollout],
  collect_round: Callable[[DapoState, Rollout], DapoState],
  update_policy: Callable[[DapoState], tuple[DapoState, Sums]],
  settings: DapoSettings,
  steps: int,
) -> Iterator[tuple[DapoState, Sums | None]]:
  """Yields after every sampling round (no sums) and after every policy batch (its sums), for `steps` batches.

  `prompts_at(cursor)` gives the prompts of the next round. After `max_rounds` rounds the update takes the groups
  that there are, also none: a hard or solved task slows learning down, it does not end the run.
  """
  while int(state.batches) < steps:
    if int(state.filled) < settings.prompts and int(state.rounds) < settings.max_rounds:
      cursor = int(state.cursor)
      rollout = sample(state.train.params, prompts_at(cursor), cursor)
      state = collect_round(state, rollout)
      yield state, None
    else:
      state, sums = update_policy(state)
      yield state, sums


def check(config: Config) -> None:
  """Raises UsageError, with numbers and remedy, for settings that cannot work together."""
  check_training(config)
  check_positive(
    config,
    *(
      "steps",
      "prompts",
      "round_prompts",
      "max_rounds",
      "minibatches",
      "micro_batches",
      "max_tokens",
      "chunk_tokens",
    ),
    *("validate_steps", "validate_prompts", "validate_batch", "checkpoint_steps"),
  )
  if config.temperature <= 0:
    raise UsageError(
      f"temperature is {config.temperature}; answers are sampled, so it must be above 0"
    )
  per_update = config.prompts // config.minibatches
  if config.prompts % config.minibatches or per_update % config.micro_batches:
    raise UsageError(
      f"{config.prompts} prompts cannot be cut into {config.minibatches} minibatches of {config.micro_batches} "
      "micro_batches; each must divide what it cuts"
    )
  updates = config.steps * config.minibatches
  if not 0 <= config.optimizer.warmup_steps < updates:
    raise UsageError(
      f"optimizer.warmup_steps is {config.optimizer.warmup_steps}; {config.steps} steps of {config.minibatches} "
      f"minibatches are {updates} updates, of which the warm-up can only be a part"
    )
  if config.samples < 2:
    raise UsageError(
      f"samples is {config.samples}; a group needs at least 2 answers to be compared"
    )
  if not 0 <= config.overlong_cache_tokens <= config.max_tokens:
    raise UsageError(
      f"overlong_cache_tokens is {config.overlong_cache_tokens}; it must lie between 0 and max_tokens "
      f"{config.max_tokens}"
    )
