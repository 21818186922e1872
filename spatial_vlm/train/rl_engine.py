"""The engine of a training run in this process, the groups that it samples, and the update on them."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config, UsageError
from spatial_vlm.metrics import PhaseClock, Sums
from spatial_vlm.process_rows import check_rows
from spatial_vlm.rewards.verdict_automaton import VerdictAutomaton
from spatial_vlm.rollout.engine import CompiledEngine, Engine
from spatial_vlm.rollout.requests import Requests
from spatial_vlm.rollout.slot_engine import SlotEngine, slots_per_part
from spatial_vlm.rollout.slot_requests import SlotSettings
from spatial_vlm.train import policy_optimization
from spatial_vlm.train.answer_scores import parts_of
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.rollout_buffer import judge_groups, rollout_shapes
from spatial_vlm.train.run import Trainable
from spatial_vlm.types import Params, Purpose, RlState, Rollout


class TrainingMeshes(NamedTuple):
  """Two meshes over the same devices."""

  training: Mesh
  """Where updates run, to which the groups go."""
  sampling: Mesh
  """Where answers are sampled, and keys and verdicts computed."""


def check_batches(config: Config, meshes: TrainingMeshes) -> None:
  """Raises ValueError for batches that do not divide over several processes.

  Raises UsageError for groups without room, and for mini-batches that cannot be cut into micro-batches.
  """
  for name in ("rollout_batch_size", "validate_batch"):
    check_rows(meshes.sampling, name, config[name])
  check_rows(meshes.training, "groups_per_batch", config.groups_per_batch)
  of_update = config.groups_per_batch // config.minibatches
  check_rows(meshes.training, "groups_per_batch / minibatches", of_update)
  with jax.set_mesh(meshes.training):
    parts_of(of_update, config.group_size, config.micro_batches)
  if config.engine.kind == "slots":
    check_slots(config, meshes.sampling)


def check_slots(config: Config, mesh: Mesh) -> None:
  """Raises UsageError for a group with more answers than the slots of one part of the mesh hold."""
  settings = config.engine
  check_rows(mesh, "engine.prompt_slots", settings.prompt_slots)
  slots = slots_per_part(mesh, settings.prompt_slots)
  if config.group_size > slots * settings.samples_per_slot:
    raise UsageError(
      f"group_size is {config.group_size}; engine.prompt_slots {settings.prompt_slots} and engine.samples_per_slot "
      f"{settings.samples_per_slot} hold {slots * settings.samples_per_slot} answers on each part of the mesh, where "
      "all answers to a prompt are: raise one of them"
    )


def compiled_engine(
  trainable: Trainable, mesh: Mesh, dtype: str, slots: SlotSettings | None = None
) -> CompiledEngine:
  """Returns an engine over the sampling mesh; with `slots`, prompts wait in a queue for free ones."""
  policy, frozen = trainable.policy, trainable.frozen
  place = policy_optimization.rollout_weight_placer(mesh, trainable.trained, frozen, dtype)
  forbidden = policy.forbidden_tokens
  return CompiledEngine(
    policy.model,
    forbidden,
    mesh,
    lambda trained: place(trained, frozen),
    slots=slots and SlotEngine(policy.processor, forbidden, mesh, slots),
  )


def group_sampler(
  engine: Engine,
  requests_of: Callable[[Mesh, Sequence[int]], Requests],
  automaton: VerdictAutomaton,
  meshes: TrainingMeshes,
  settings: RlSettings,
  seed: int,
  clock: PhaseClock,
) -> Callable[[Params, int], Rollout]:
  """Returns (params, cursor) -> the judged groups of the round that begins there, over the training mesh.

  `seed` is that of the run; keys are functions of (seed, cursor, prompt, sample, token).
  """
  key = jax.random.fold_in(jax.random.key(seed), Purpose.ROLLOUT)
  groups = rollout_shapes(settings.rollout_batch_size, settings)
  to_train = jax.jit(lambda x: x, out_shardings=sharding.batch_sharding(meshes.training, groups))

  def sample(params: Params, cursor: int) -> Rollout:
    with clock.phase("time/sampling_s"), jax.set_mesh(meshes.sampling):
      numbers = range(cursor, cursor + settings.rollout_batch_size)
      requests = requests_of(meshes.sampling, numbers)
      engine.publish(params)
      completions = engine.generate(requests, jax.random.fold_in(key, cursor), settings.sampling)
      engine.release()  # before the update, which needs the memory
      judged = judge_groups(
        requests.prompts, completions, automaton, group_size=settings.group_size
      )
      return jax.block_until_ready(to_train(judged))

  return sample


def policy_update(
  trainable: Trainable,
  requests_of: Callable[[Mesh, Sequence[int]], Requests],
  optimizer: optax.GradientTransformation,
  settings: RlSettings,
  clock: PhaseClock,
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
    prompts_of=lambda numbers: requests_of(trainable.mesh, numbers).prompts,
    constants=constants,
    model=policy.model,
    optimizer=optimizer,
    settings=settings,
    clock=clock,
  )
