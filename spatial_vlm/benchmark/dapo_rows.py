"""One DAPO step and its phases: sampling, old log-probabilities, update."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from spatial_vlm import sharding
from spatial_vlm.benchmark.inference_rows import END, never_ending
from spatial_vlm.benchmark.inputs import random_prompts
from spatial_vlm.benchmark.measure import build, flops_of, seconds_of
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import Subject, row_shape
from spatial_vlm.benchmark.training_rows import fresh_state
from spatial_vlm.config import settings_from
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.sampler import generate, stages
from spatial_vlm.tasks import find_task
from spatial_vlm.train import policy_optimization, rollout_buffer
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.update import cut_rows
from spatial_vlm.types import Params, RlState, Rollout


def dapo_rows(subject: Subject) -> Iterator[Row]:
  """Yields the time of a step on full answers of random verdicts, and of its phases.

  One round of sampling fills the policy batch. The update's program computes the old log-probabilities too: their own
  program is timed alone, and the row of the update has the rest.
  """
  config = subject.config.dapo
  round_of = _Round(subject)
  phases = [round_of.run() for _ in range(config.rounds)]
  times = {name: [phase[name] for phase in phases] for name in phases[0]}
  answers = config.groups_per_batch * config.group_size
  answer_tokens = answers * config.max_new_tokens
  rows_text = (
    f"{config.groups_per_batch} groups of {config.group_size} answers of {config.max_new_tokens} tokens to prompts of "
    f"{config.tokens} tokens, {config.images * config.grid[0] * config.grid[1]} patches; "
    f"{config.minibatches} minibatches"
  )

  def row(name: str, seconds: list[float], flops: float, **others) -> Row:
    return Row(subject.name, name, Spread.of(seconds), tokens=answer_tokens, flops=flops, **others)

  old, update = times["old"], times["update"]
  flops = round_of.flops
  yield row(
    "DAPO step",
    [a + b for a, b in zip(times["sampling"], update, strict=True)],
    flops["sampling"] + flops["update"],
    note=rows_text,
  )
  sampling, updating = round_of.built_generate, round_of.built_update
  yield row(
    "DAPO sampling",
    times["sampling"],
    flops["sampling"],
    compile_s=sampling.seconds,
    peak_bytes=sampling.peak_bytes,
  )
  yield row("DAPO old log-probabilities", old, flops["old"])
  yield row(
    "DAPO update",
    [max(a - b, 1e-9) for a, b in zip(update, old, strict=True)],
    flops["update"] - flops["old"],
    compile_s=updating.seconds,
    peak_bytes=updating.peak_bytes,
  )


class _Round:
  """One DAPO step after another, on the same prompts."""

  def __init__(self, subject: Subject):
    config, self._model = subject.config.dapo, subject.model
    self._settings = settings = settings_from(RlSettings, config, eos=END, pad=END)
    train, frozen, optimizer = fresh_state(subject, config)
    host = random_prompts(
      self._model, config.groups_per_batch, row_shape(config), subject.config.seed
    )
    self._prompts = sharding.make_global_batch(subject.mesh, host)
    self._constants = policy_optimization.Constants(never_ending(self._model), frozen)
    convert = functools.partial(policy_optimization.rollout_weights, dtype=config.dtype)
    shapes = jax.eval_shape(convert, train.params, frozen)
    where = sharding.param_shardings(subject.mesh, shapes)
    self._rollout_weights = jax.jit(convert, out_shardings=where)
    grammar = find_task(config.task).grammar
    self._automaton = compile_automaton(grammar, [b""] * self._model.text.vocab_size, END)
    groups = rollout_buffer.rollout_shapes(self._prompts, self._automaton, settings)
    self._state = rollout_buffer.place_state(subject.mesh, train, groups, settings)
    weights = sharding.with_shardings(shapes, where)
    self._key = jax.random.key(subject.config.seed)
    trace_generate = functools.partial(
      generate.trace,
      *(weights, self._prompts, self._key, self._constants.forbidden_tokens),
      model=self._model,
      sampling=settings.sampling,
    )
    self.built_generate = build(trace_generate)
    update = functools.partial(
      policy_optimization.update_policy.trace, self._state, self._constants
    )
    static = dict(model=self._model, optimizer=optimizer)
    self.built_update = build(functools.partial(update, **static, settings=settings))
    self._score = jax.jit(self._old_logprobs)
    whole = dataclasses.replace(settings, remat="none", chunk_tokens=config.max_new_tokens + 1)
    trip_count = config.max_new_tokens // len(stages(config.max_new_tokens))
    self.flops = {
      "sampling": flops_of(trace_generate(), trip_count),
      "old": flops_of(self._score.trace(self._state.train.params, self._state.buffer)),
      "update": flops_of(update(**static, settings=whole)),
    }
    self.run()  # compiles the small programs

  def run(self) -> dict[str, float]:
    """Makes one step; returns the seconds of its phases."""
    return {
      "sampling": seconds_of(self._sample),
      "old": seconds_of(lambda: self._score(self._state.train.params, self._state.buffer)),
      "update": seconds_of(self._update),
    }

  def _sample(self) -> RlState:
    weights = self._rollout_weights(self._state.train.params, self._constants.frozen)
    completions = self.built_generate.call(
      weights, self._prompts, self._key, self._constants.forbidden_tokens
    )
    groups = rollout_buffer.judge_groups(
      self._prompts, completions, self._automaton, group_size=self._settings.group_size
    )
    # Random weights answer nothing right; half of each group counts as right, so that every group is kept.
    right = jnp.broadcast_to(jnp.arange(self._settings.group_size) % 2 == 0, groups.correct.shape)
    self._state = rollout_buffer.collect(
      self._state, groups.replace(correct=right), settings=self._settings
    )
    return self._state

  def _update(self) -> RlState:
    self._state, _ = self.built_update.call(self._state, self._constants)
    return self._state

  def _old_logprobs(self, params: Params, rollout: Rollout) -> jax.Array:
    settings = self._settings
    pieces = cut_rows(rollout, settings.minibatches * settings.micro_batches)
    return policy_optimization.piecewise_logprobs(
      params, pieces, self._constants, self._model, settings
    )
