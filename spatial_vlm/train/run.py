"""What training runs share: checks, placement over the mesh, and the files that they write and resume from."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh

from spatial_vlm import hosts, sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.compile_clock import compile_seconds
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.contents import contents
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.loading import load_policy_for_training
from spatial_vlm.inference.policy import Policy
from spatial_vlm.metrics import MetricsWriter
from spatial_vlm.parameters.int8 import dequantize
from spatial_vlm.parameters.lora import new_adapters
from spatial_vlm.parameters.partition import Subset, combine, flatten, partition, subset_from_config
from spatial_vlm.parameters.paths import INT8
from spatial_vlm.progress import ProgressLines, TerminalBar, progress_bar
from spatial_vlm.stop_signals import checkpoint_at_signals
from spatial_vlm.train.prolonging import RunLength, prolonged, store_length
from spatial_vlm.train.trained_weights import base_record, check_base
from spatial_vlm.train.update import init_state
from spatial_vlm.types import Params, Purpose, TrainState
from spatial_vlm.workdir import SETTINGS_FILE

HARMLESS = (
  *("log_*", "checkpoint_*", "max_to_keep", "*.workers", "mesh.*", "sampling_mesh.*"),
  *("engine.url", "engine.folder", "engine.in_flight", "engine.timeout_s"),
)
"""Settings that may change when a run resumes: its results do not depend on them."""


def check_training(config: Config) -> None:
  """Raises UsageError for checkpoints that are never due."""
  cadence = (config.checkpoint_steps, config.checkpoint_minutes)
  if max(cadence) == 0:
    raise UsageError(
      f"checkpoint_steps is {cadence[0]} and checkpoint_minutes is {cadence[1]}; set at least one of them above 0"
    )


def record_settings(config: Config, workdir: epath.Path, length: RunLength) -> None:
  """Records the settings of a training run: process 0 writes config.json, the others compare theirs with it.

  Raises UsageError, in all processes, for other settings than those that the run was started with; its `length` may
  grow where the updates so far do not depend on it.
  """
  first = jax.process_index() == 0
  with user_errors():
    if first:
      grown = prolonged(config, workdir, length)
      snapshot(config, workdir, (*HARMLESS, *grown), contents(config, HARMLESS))
      for leaf in grown:
        store_length(config, workdir, leaf)
  with user_errors():
    if not first and not (workdir / SETTINGS_FILE).exists():
      raise UsageError(
        f"{workdir} lacks the config.json of process 0; --workdir must be a folder that all hosts share, e.g. on gs://"
      )
    if not first:
      snapshot(config, workdir, HARMLESS)


def place_state(mesh: Mesh, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """Returns a fresh train state over the mesh, with float32 weights.

  Weights that are already there (`load_policy_for_training`) are not copied: the first update overwrites them.
  """
  masters = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, np.float32), params)
  shapes = jax.eval_shape(lambda p: init_state(p, optimizer), masters)
  where = sharding.state_shardings(mesh, shapes)
  # One array at a time: a second copy of the model may not fit.
  params = jax.tree.map(
    lambda p, sharding: jax.device_put(p.astype(np.float32), sharding), params, where.params
  )
  rest = jax.jit(
    lambda p: init_state(p, optimizer).replace(params=None),
    out_shardings=where.replace(params=None),
  )
  return rest(params).replace(params=params)


def checkpoint_cadence(steps: int, minutes: float) -> Callable[[int], bool]:
  """Returns number of an event -> whether a checkpoint is due: every so many events, and every so many minutes.

  Zero switches a cadence off. The clock of process 0 decides, so that all processes save together; every process must
  ask at every event.
  """
  saved = time.monotonic()

  def is_due(event: int) -> bool:
    nonlocal saved
    due = steps > 0 and event % steps == 0
    if minutes > 0:
      waited, *_ = hosts.all_gather_json(time.monotonic() - saved)
      due |= waited >= 60 * minutes
    if due:
      saved = time.monotonic()
    return due

  return is_due


def progress(name: str, done: int, total: int) -> TerminalBar | ProgressLines:
  """Returns the progress of a run, with the time left without compilation; only process 0 shows it."""
  return progress_bar(
    name,
    total,
    done=done,
    unit="step",
    compiles=True,
    excluded=compile_seconds,
    disable=jax.process_index() > 0,
  )


def partition_policy(
  mesh: Mesh, params: Params, subset: Subset, seed: int
) -> tuple[Params, Params]:
  """Returns (trained, frozen) of a loaded policy, with fresh LoRA factors.

  Raises ValueError for patterns that match nothing, and where `frozen_int8` finds no kernel to store in int8.
  """
  if subset.frozen_int8 and not any(path.endswith(INT8[0]) for path in flatten(params)):
    raise ValueError(
      f"frozen_int8 is True, but trainable {subset.trainable} freezes no kernel; set it to False, or train LoRA "
      "factors alone: trainable=('.*/lora_[ab]',) and lora.rank=16"
    )
  if not subset.rank:
    return partition(params, subset.trainable)
  key = jax.random.fold_in(jax.random.key(seed), Purpose.ADAPTERS)
  shapes = jax.eval_shape(dequantize, params)
  where = sharding.param_shardings(
    mesh, jax.eval_shape(lambda k: new_adapters(shapes, subset, k), key)
  )
  adapters = jax.jit(lambda k: new_adapters(shapes, subset, k), out_shardings=where)(key)
  return partition(combine(params, adapters), subset.trainable)


class Trainable(NamedTuple):
  """A policy loaded for training, its parameters over the mesh."""

  mesh: Mesh
  subset: Subset
  policy: Policy
  trained: Params
  frozen: Params


def load_trainable(config: Config, mesh: Mesh, from_scratch: bool = False) -> Trainable:
  """Loads the policy of a training config and partitions it into what trains and what is frozen.

  Raises UsageError and ValueError for settings that do not fit the checkpoint.
  """
  subset = subset_from_config(config)
  policy = load_policy_for_training(
    config.checkpoint, mesh, subset, config.seed if from_scratch else None
  )
  return Trainable(
    mesh, subset, policy, *partition_policy(mesh, policy.params, subset, config.seed)
  )


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """The files of one start of a training run."""

  checkpoints: Checkpoints
  metrics: MetricsWriter
  base: dict[str, Any]
  """Where the frozen weights come from, with their checksums."""

  @property
  def is_new(self) -> bool:
    """Whether no checkpoint exists yet."""
    return self.checkpoints.latest() is None

  def restore(self, state: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the newest (state, host); raises UsageError where the frozen weights have changed."""
    with user_errors():
      state, host = self.checkpoints.restore(state)
      check_base(host["base"], self.base["checksums"])
    return state, host

  def save(
    self,
    number: int,
    state: Any,
    host_state: Callable[[], dict[str, Any]],
    *,
    is_due: bool,
    ends_early: bool,
  ) -> None:
    """Writes checkpoint `number` if it is due or the run `ends_early`; raises hosts.Preempted in the latter case.

    All processes call it. `host_state` is called only for a checkpoint, since it may gather from all processes.
    """
    if is_due or ends_early:
      self.metrics.commit()
      self.checkpoints.save(number, state, host_state() | {"base": self.base})
    if ends_early:
      raise hosts.Preempted


@contextlib.contextmanager
def open_run(config: Config, workdir: epath.Path, trainable: Trainable) -> Iterator[RunFiles]:
  """Around the loop of a run: sets its mesh, closes its files at the end, and lets signals ask for a checkpoint."""
  base = base_record(config, trainable.frozen)
  with (
    jax.set_mesh(trainable.mesh),  # the kernels read the mesh
    Checkpoints(workdir / "checkpoints", config.max_to_keep) as checkpoints,
    MetricsWriter(workdir) as writer,
    checkpoint_at_signals(),
  ):
    yield RunFiles(checkpoints, writer, base)
