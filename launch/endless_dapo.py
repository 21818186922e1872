"""Steps of `spatial-vlm dapo` in which every answer has all of its tokens, for comparisons of speed."""

import dataclasses
import functools
import time

import jax
import numpy as np

from spatial_vlm import sharding
from spatial_vlm.benchmark.dapo_rows import half_right
from spatial_vlm.config import Config, settings_from
from spatial_vlm.data.pipeline import prompt_order
from spatial_vlm.data.reading import Reader
from spatial_vlm.inference.generation import QuestionEncoder, Row
from spatial_vlm.metrics import PhaseClock
from spatial_vlm.optim.optimizers import optimizer_from_config
from spatial_vlm.process_rows import make_global_batch
from spatial_vlm.train import rl_data, rl_settings, rollout_buffer
from spatial_vlm.train.policy_optimization import Constants, Minibatch, rl_loop, score_minibatch
from spatial_vlm.train.rl_engine import (
  TrainingMeshes,
  check_batches,
  compiled_engine,
  group_sampler,
  policy_update,
)
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.run import Trainable, load_trainable, place_state
from spatial_vlm.types import Prompts

STEP = "step"


class EndlessDapo:
  """The loop of the command on a config of it, without validation and without files of a run.

  The end of a turn is never sampled. Every second answer counts as right, so one round fills a policy batch.
  """

  def __init__(self, config: Config):
    rl_settings.check(config)
    self._mesh = mesh = sharding.make_mesh(config.mesh)
    meshes = TrainingMeshes(mesh, mesh)
    check_batches(config, meshes)
    self._trainable = without_end(load_trainable(config, mesh))
    self.policy = policy = self._trainable.policy
    special = policy.special
    self.settings = settings_from(RlSettings, config, eos=special.eos, pad=special.pad)
    questions = rl_data.question_builder(config)
    encode = QuestionEncoder(policy.processor, rl_data.rl_format(config), questions)
    records = rl_data.open_records(config, config.data.records)
    self._read = Reader(records, encode, config.data.max_bad_share)
    self._order = prompt_order(config.seed, len(self._read))
    self._requests_of = rl_data.training_requests(config, policy, self._read)
    optimizer = optimizer_from_config(config.optimizer, config.steps * config.minibatches)
    train = place_state(mesh, self._trainable.trained, optimizer)
    self._clock, self._params = PhaseClock(time.process_time), train.params
    sample = group_sampler(
      compiled_engine(self._trainable, mesh, config.dtype),
      self._requests_of,
      rl_data.answer_automaton(config, policy),
      meshes,
      self.settings,
      config.seed,
      self._clock,
    )
    self._loop = rl_loop(
      rollout_buffer.place_state(mesh, train, self.settings),
      lambda params, cursor: half_right(sample(params, cursor)),
      functools.partial(rollout_buffer.collect, settings=self.settings),
      policy_update(self._trainable, self._requests_of, optimizer, self.settings, self._clock),
      self.settings,
      config.steps,
    )

  def step(self) -> dict[str, float]:
    """Makes one step; returns the CPU seconds of STEP and of each phase."""
    start = time.process_time()
    with jax.set_mesh(self._mesh):
      next(sums for _, sums in self._loop if sums is not None)
    return {STEP: time.process_time() - start, **self._clock.read()}

  def rows(self) -> list[Row]:
    """Returns all records with their questions, in the order in which the first epoch asks them."""
    return [self._read(self._order(number)) for number in range(len(self._read))]

  def prompts(self, groups: int) -> Prompts:
    """Returns the first prompts."""
    return self._requests_of(self._mesh, range(groups)).prompts

  def logprobs(self, answers: np.ndarray) -> np.ndarray:
    """Returns log-probabilities (B, G, T) of full answers to the first prompts, over all ids.

    Call it before the first step, which overwrites the weights.
    """
    shapes = rollout_buffer.rollout_shapes(len(answers), self.settings)
    rollout = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    rollout = rollout.replace(tokens=answers, mask=np.ones(answers.shape, bool))
    minibatch = Minibatch(self.prompts(len(answers)), make_global_batch(self._mesh, rollout))
    nothing_forbidden = np.zeros_like(self.policy.forbidden_tokens)
    constants = Constants(nothing_forbidden, self._trainable.frozen)
    with jax.set_mesh(self._mesh):
      logp = score_minibatch(
        self._params, minibatch, constants, model=self.policy.model, settings=self.settings
      )
    return np.asarray(logp)


def without_end(trainable: Trainable) -> Trainable:
  """Returns the same weights with a policy that never samples the end of a turn."""
  special = trainable.policy.special
  never = (*special.never_sampled, special.eos)
  special = dataclasses.replace(special, never_sampled=never)
  return trainable._replace(policy=trainable.policy._replace(special=special))
