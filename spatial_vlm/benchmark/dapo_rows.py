"""DAPO steps by the loop of training, and their phases: sampling, old log-probabilities, update."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from spatial_vlm import sharding
from spatial_vlm.benchmark.inference_rows import END, never_ending
from spatial_vlm.benchmark.inputs import random_prompts
from spatial_vlm.benchmark.measure import build, flops_of
from spatial_vlm.benchmark.row import Row, Spread
from spatial_vlm.benchmark.subject import Subject, row_shape
from spatial_vlm.benchmark.training_rows import fresh_state
from spatial_vlm.config import settings_from
from spatial_vlm.metrics import CLOCK_PREFIX, PhaseClock
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.rewards.accuracy import is_correct
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.rollout.engine import CompiledEngine
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.sampler import generate, stages
from spatial_vlm.tasks import find_task
from spatial_vlm.train import policy_optimization, rollout_buffer
from spatial_vlm.train.policy_optimization import (
  Constants,
  Minibatch,
  MinibatchScores,
  score_minibatch,
  step_on_minibatch,
)
from spatial_vlm.train.rl_engine import TrainingMeshes, group_sampler
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.types import Params, Rollout

PHASES = {
  "sampling": "DAPO sampling",
  "old_logprobs": "DAPO old log-probabilities",
  "update": "DAPO update",
}
"""Phase of the training's clock → name of its row."""


def dapo_rows(subject: Subject) -> Iterator[Row]:
  """Yields the time of a step on full answers of random verdicts, and of its phases.

  The steps are those of `dapo`, timed by its clock, without reading and encoding of photographs.
  """
  config = subject.config.dapo
  run = _Run(subject)
  built = {phase: build(trace) for phase, trace in run.traces(run.settings).items()}
  flops = run.flops()
  times = run.phase_seconds(config.rounds)
  shape = row_shape(config)

  def row(name: str, seconds: list[float], flops: float, **others) -> Row:
    tokens = config.groups_per_batch * config.group_size * config.max_new_tokens
    return Row(subject.name, name, Spread.of(seconds), tokens=tokens, flops=flops, **others)

  yield row(
    "DAPO step",
    [sum(phases) for phases in zip(*times.values(), strict=True)],
    sum(flops.values()),
    note=f"{config.groups_per_batch} groups of {config.group_size} answers of {config.max_new_tokens} tokens to "
    f"prompts of {shape.tokens} tokens, {shape.patches} patches; {config.minibatches} minibatches",
  )
  for phase, name in PHASES.items():
    of_program = {"compile_s": built[phase].seconds, "peak_bytes": built[phase].peak_bytes}
    yield row(name, times[phase], flops[phase], **of_program)


class _Run:
  """A run of DAPO on random weights and prompts, where half of the answers of each group count as right."""

  def __init__(self, subject: Subject):
    config, self._model, self._mesh = subject.config.dapo, subject.model, subject.mesh
    self.settings = settings_from(RlSettings, config, eos=END, pad=END)
    self._seed = subject.config.seed
    self._prompts = random_prompts(
      self._model, config.groups_per_batch, row_shape(config), self._seed
    )
    train, frozen, self._optimizer = fresh_state(subject, config)
    reference = policy_optimization.reference_policy(self._mesh, train.params, self.settings)
    self._constants = Constants(never_ending(self._model), frozen, reference)
    self._state = rollout_buffer.place_state(self._mesh, train, self.settings)
    self._task = find_task(config.task)
    weights = (self._mesh, train.params, frozen, config.dtype)
    self._weights = policy_optimization.rollout_weight_shapes(*weights)
    place = policy_optimization.rollout_weight_placer(*weights)
    self._engine = CompiledEngine(
      self._model,
      self._constants.forbidden_tokens,
      self._mesh,
      lambda params: place(params, frozen),
    )

  def phase_seconds(self, steps: int) -> dict[str, list[float]]:
    """Makes so many steps after one that is not counted; returns the seconds of each phase."""
    clock, settings = PhaseClock(), self.settings
    update = functools.partial(
      policy_optimization.update_policy,
      prompts_of=lambda numbers: self._requests_of(self._mesh, numbers).prompts,
      constants=self._constants,
      model=self._model,
      optimizer=self._optimizer,
      settings=settings,
      clock=clock,
    )
    loop = policy_optimization.rl_loop(
      self._state,
      self._sampler(clock),
      functools.partial(rollout_buffer.collect, settings=settings),
      update,
      settings,
      steps + 1,
    )
    del self._state  # the loop overwrites it
    readings = [clock.read() for _, sums in loop if sums is not None]
    return {
      phase: [reading[f"{CLOCK_PREFIX}{phase}_s"] for reading in readings[1:]] for phase in PHASES
    }

  def traces(self, settings: RlSettings) -> dict[str, Callable[[], jax.stages.Traced]]:
    """Returns what traces the largest program of each phase."""
    train, rows = self._state.train, settings.groups_per_batch // settings.minibatches
    groups = sharding.with_row_shardings(self._mesh, rollout_buffer.rollout_shapes(rows, settings))
    prompts_of_round, prompts_of_minibatch = (
      self._requests_of(self._mesh, range(count)).prompts
      for count in (settings.rollout_batch_size, rows)
    )
    minibatch = Minibatch(prompts_of_minibatch, groups)
    reference = groups.logp if self._constants.reference else None
    scores = MinibatchScores(groups.logp, reference, jnp.zeros((), bool))
    static = dict(model=self._model, settings=settings)
    forbidden = self._constants.forbidden_tokens
    sampled = (self._weights, prompts_of_round, jax.random.key(0), forbidden)
    learnt = (train, minibatch, scores, self._constants)
    return {
      "sampling": functools.partial(
        generate.trace, *sampled, model=self._model, sampling=settings.sampling
      ),
      "old_logprobs": functools.partial(
        score_minibatch.trace, train.params, minibatch, self._constants, **static
      ),
      "update": functools.partial(
        step_on_minibatch.trace, *learnt, optimizer=self._optimizer, **static
      ),
    }

  def flops(self) -> dict[str, float]:
    """Returns the operations of each phase of a step, without recomputation in the backward pass."""
    tokens = self.settings.max_new_tokens
    whole = dataclasses.replace(self.settings, remat="none", chunk_tokens=tokens + 1)
    of = {
      phase: flops_of(trace(), trip_count=tokens // len(stages(tokens)))
      for phase, trace in self.traces(whole).items()
    }
    rounds = math.ceil(whole.groups_per_batch / whole.rollout_batch_size)
    return {
      "sampling": rounds * of["sampling"],
      "old_logprobs": policy_optimization.scorings(whole) * of["old_logprobs"],
      "update": whole.minibatches * of["update"],
    }

  def _sampler(self, clock: PhaseClock) -> Callable[[Params, int], Rollout]:
    """Returns the sampler of `dapo`; half of each group counts as right, so that every group is kept."""
    vocabulary = [b""] * self._model.text.vocab_size
    sample = group_sampler(
      self._engine,
      self._requests_of,
      compile_automaton(self._task.grammar, vocabulary, END),
      TrainingMeshes(self._mesh, self._mesh),
      self.settings,
      self._seed,
      clock,
    )

    return lambda params, cursor: half_right(sample(params, cursor))

  def _requests_of(self, mesh: Mesh, numbers: Sequence[int]) -> Requests:
    """Returns prompts over the mesh; there are as many different ones as groups in a batch."""
    rows = np.asarray(numbers) % len(self._prompts.ids)
    prompts = jax.tree.map(lambda x: x[rows], self._prompts)
    return Requests(make_global_batch(mesh, prompts), texts=(), images=(), systems=())


def half_right(rollout: Rollout) -> Rollout:
  """Puts `half_right_verdicts` in place of the answers' own."""
  verdict = half_right_verdicts(rollout.label, rollout.verdict.shape[1])
  return rollout.replace(verdict=verdict, correct=is_correct(verdict, rollout.label[:, None]))


def half_right_verdicts(label: Int[Array, "B"], group_size: int) -> Int[Array, "B G"]:
  """Returns verdicts of which every second one is right, so that every group has mixed outcomes."""
  right = jnp.arange(group_size)[None] % 2 == 0
  return jnp.where(right, label[:, None], 1 - label[:, None])
