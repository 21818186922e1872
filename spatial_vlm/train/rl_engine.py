"""The engine of a training run in this process, the groups that it samples, and the update on them."""

import functools
from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.metrics import Sums
from spatial_vlm.rewards.verdict_automaton import VerdictAutomaton
from spatial_vlm.rollout.engine import CompiledEngine, Engine, Requests
from spatial_vlm.train import policy_optimization
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.rollout_buffer import judge_groups
from spatial_vlm.train.run import Trainable
from spatial_vlm.types import Params, Purpose, RlState, Rollout


def compiled_engine(trainable: Trainable, mesh: Mesh, dtype: str) -> CompiledEngine:
  """Returns an engine over the sampling mesh.

  Weights are sharded by heads and hidden units there. Sharded by width, as for training, every token of an answer would
  gather the whole model.
  """
  convert = functools.partial(policy_optimization.rollout_weights, dtype=dtype)
  shapes = jax.eval_shape(convert, trainable.trained, trainable.frozen)
  place = jax.jit(convert, out_shardings=sharding.param_shardings(mesh, shapes))
  policy, frozen = trainable.policy, trainable.frozen
  return CompiledEngine(
    policy.model, policy.forbidden_tokens, mesh, lambda trained: place(trained, frozen)
  )


def group_sampler(
  engine: Engine,
  automaton: VerdictAutomaton,
  mesh: Mesh,
  sampling_mesh: Mesh,
  groups: Rollout,
  settings: RlSettings,
  seed: int,
) -> Callable[[Params, Requests, int], Rollout]:
  """Returns (params, requests, cursor) -> judged groups over the training mesh.

  Args:
    mesh, sampling_mesh: of training, to which the groups go, and of sampling, where keys and verdicts are computed.
    groups: shapes of the groups of one round.
    seed: of the run; keys are functions of (seed, cursor, prompt, sample, token).
  """
  key = jax.random.fold_in(jax.random.key(seed), Purpose.ROLLOUT)
  to_train = jax.jit(lambda x: x, out_shardings=sharding.batch_sharding(mesh, groups))

  def sample(params: Params, requests: Requests, cursor: int) -> Rollout:
    with jax.set_mesh(sampling_mesh):
      engine.publish(params)
      completions = engine.generate(requests, jax.random.fold_in(key, cursor), settings.sampling)
      engine.release()  # before the update, which needs the memory
      judged = judge_groups(
        requests.prompts, completions, automaton, group_size=settings.group_size
      )
      return to_train(judged)

  return sample


def policy_update(
  trainable: Trainable, optimizer: optax.GradientTransformation, settings: RlSettings
) -> Callable[[RlState], tuple[RlState, Sums]]:
  """Returns the update of a run on its collected groups.

  Call it before the first update, which overwrites the weights that the reference policy is copied from.
  """
  policy = trainable.policy
  constants = policy_optimization.Constants(
    policy.forbidden_tokens,
    trainable.frozen,
    policy_optimization.reference_policy(trainable.mesh, trainable.trained, settings),
  )
  return functools.partial(
    policy_optimization.update_policy,
    constants=constants,
    model=policy.model,
    optimizer=optimizer,
    settings=settings,
  )
