"""Align a fine-tuned model by DAPO: it samples answers, and learns from which of them are right.

Reads a Hugging Face folder and labelled records; no chain of thought is read, only labels. Writes a Hugging Face
folder to WORKDIR/export. Prompts whose answers are all right or all wrong teach nothing: more are drawn, up to a
bounded number of rounds. After an interruption the same command resumes from the last checkpoint, also between two
rounds of one batch. `trainable` and `lora` choose what trains, as in `sft`.

  spatial-vlm dapo --config configs/dapo.py:tiny --workdir runs/dapo
  spatial-vlm dapo --config.objectives="(('gspo', 1.0),)"                            # another objective
  spatial-vlm dapo --config.objectives="(('dapo', 1.0), ('kl_reference', 0.01))"     # stays near the start
  spatial-vlm dapo --config.engine.kind=vllm --config.engine.folder=/shared/weights  # samples from a vLLM server
"""

import argparse
import functools
import time
from collections.abc import Callable

from etils import epath

from spatial_vlm import hosts, metrics, sharding
from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, leaves, settings_from
from spatial_vlm.hosts import user_errors
from spatial_vlm.inputs import check_inputs
from spatial_vlm.metrics import PhaseClock
from spatial_vlm.optim.optimizers import optimizer_from_config
from spatial_vlm.train import rl_data, rl_settings, rollout_buffer
from spatial_vlm.train.engines import ENGINES, check_engine, check_gap
from spatial_vlm.train.policy_optimization import rl_loop
from spatial_vlm.train.prolonging import RunLength
from spatial_vlm.train.rl_engine import (
  TrainingMeshes,
  check_batches,
  group_sampler,
  policy_update,
)
from spatial_vlm.train.rl_settings import RlSettings
from spatial_vlm.train.run import (
  RunFiles,
  checkpoint_cadence,
  load_trainable,
  open_run,
  place_state,
  progress,
  record_settings,
)
from spatial_vlm.train.trained_weights import write_trained
from spatial_vlm.types import RlState

INPUTS = (
  *("checkpoint", "behaviors"),
  *("data.records", "data.images", "data.validation", "data.evaluation"),
)
"""Leaves that name files to read."""


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  rl_settings.check(config)
  check_engine(config.engine)


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  """Loads the policy and the prompts, trains, and writes the weights."""
  with user_errors():
    check(config)
    check_inputs(config, INPUTS)
    mesh = sharding.make_mesh(config.mesh)
    meshes = TrainingMeshes(mesh, sharding.reshape_mesh(mesh, config.sampling_mesh))
    check_batches(config, meshes)
    trainable = load_trainable(config, mesh)
    policy, special = trainable.policy, trainable.policy.special
    automaton = rl_data.answer_automaton(config, policy)
    settings = settings_from(RlSettings, config, eos=special.eos, pad=special.pad)
    optimizer = optimizer_from_config(config.optimizer, config.steps * config.minibatches)
    engine = ENGINES[config.engine.kind](config, trainable, meshes.sampling)
    data = rl_data.open_data(config, policy, meshes.sampling, automaton, engine)
  record_settings(config, workdir, RunLength("steps"))
  clock, requests_of = PhaseClock(), data.requests_of
  updates = functools.partial(
    rl_loop,
    sample=group_sampler(engine, requests_of, automaton, meshes, settings, config.seed, clock),
    collect_round=functools.partial(rollout_buffer.collect, settings=settings),
    update=policy_update(trainable, requests_of, optimizer, settings, clock),
    settings=settings,
    steps=config.steps,
  )
  train = place_state(mesh, trainable.trained, optimizer)
  with open_run(config, workdir, trainable) as files:
    state = rollout_buffer.place_state(mesh, train, settings)
    if not files.is_new:
      state, host = files.restore(state)
      with user_errors():
        data.restore(host)
    state = fit(config, state, data, updates, files, clock)
  write_trained(
    workdir, leaves(config), files.base, policy.model, mesh, trainable.subset, state.train.params
  )


def fit(
  config: Config,
  state: RlState,
  data: rl_data.RlData,
  updates: Callable,
  files: RunFiles,
  clock: PhaseClock,
) -> RlState:
  """Runs the loop to its end; writes metrics, checkpoints and the progress bar."""
  is_due = checkpoint_cadence(config.checkpoint_steps, config.checkpoint_minutes)
  with progress("dapo", int(state.batches), config.steps) as bar:
    if files.is_new:
      files.metrics.write(0, {"validation/accuracy": data.validate(state.train.params)})
    started = time.perf_counter()
    for state, sums in updates(state):  # noqa: B020 (each turn yields the next state)
      batch = int(state.batches)
      if sums is not None:
        values = metrics.means(sums) | {"time/step_s": time.perf_counter() - started}
        if batch % config.validate_steps == 0 or batch == config.steps:
          with clock.phase("time/validation_s"):
            values["validation/accuracy"] = data.validate(state.train.params)
        files.metrics.write(batch, values | clock.read())
        check_gap(config.engine, values.get("rollout_logprob_gap", 0.0))
        show_progress(config, batch, values, bar)
        started = time.perf_counter()
      event = int(state.cursor) // config.rollout_batch_size + batch
      due = is_due(event) or batch == config.steps
      files.save(event, state, data.host_state, is_due=due, ends_early=hosts.preempted(event))
  return state


def show_progress(config: Config, batch: int, values: dict[str, float], bar) -> None:
  """Advances the bar; says where a batch has fewer groups than it should."""
  groups = int(values["kept/groups"])
  if groups < config.groups_per_batch and not bar.disable:
    consequence = "the update took these" if groups else "no update was made"
    bar.write(
      f"batch {batch}: after {values['rounds']:.0f} rounds {groups} of {config.groups_per_batch} groups had mixed "
      f"outcomes; {consequence}"
    )
  bar.set_postfix(
    sampled=f"{values['sampled/accuracy']:.3f}",
    tokens=f"{values['sampled/length_tokens']:.0f}",
    entropy=f"{values.get('entropy', 0.0):.3f}",
  )
  bar.update()


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  export = workdir / "export"
  return ending(
    f"{export} (Hugging Face folder of the policy)",
    args.config,
    ["answer", "PHOTO", "STATEMENT", "--checkpoint", export],
    ["evaluate", leaf("checkpoint", export)],
    ["behaviors", leaf("checkpoint", export)],
  )
