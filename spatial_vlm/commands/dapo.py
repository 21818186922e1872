"""Align a fine-tuned model by DAPO: it samples answers, and learns from which of them are right.

Reads a Hugging Face folder and labelled records; no chain of thought is read, only labels. Writes a Hugging Face
folder to WORKDIR/export. Prompts whose answers are all right or all wrong teach nothing: more are drawn, up to a
bounded number of rounds. After an interruption the same command resumes from the last checkpoint, also between two
rounds of one batch. `trainable` and `lora` choose what trains, as in `sft`.

  spatial-vlm dapo --config configs/dapo.py:tiny --workdir runs/dapo
  spatial-vlm dapo --config.objectives="(('gspo', 1.0),)"                            # another objective
  spatial-vlm dapo --config.objectives="(('dapo', 1.0), ('kl_reference', 0.01))"     # stays near the start
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

from etils import epath

from spatial_vlm import hosts, metrics, sharding
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, settings_from
from spatial_vlm.hosts import user_errors
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.processor.tokenizer import token_bytes
from spatial_vlm.rewards.verdict_automaton import compile_automaton
from spatial_vlm.tasks import find_task
from spatial_vlm.train import policy_optimization, rl_data, rollout_buffer
from spatial_vlm.train.rl_engine import compiled_engine, group_sampler
from spatial_vlm.train.rl_settings import RlSettings, check
from spatial_vlm.train.run import (
  RunFiles,
  load_trainable,
  open_run,
  place_state,
  progress,
  record_settings,
)
from spatial_vlm.train.trained_weights import write_trained
from spatial_vlm.types import Params, RlState


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  """Loads the policy and the prompts, trains, and writes the weights."""
  with user_errors():
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    sampling_mesh = sharding.reshape_mesh(mesh, config.sampling_mesh)
    rl_data.check_blocks(config, sampling_mesh)
    trainable = load_trainable(config, mesh)
    policy, special = trainable.policy, trainable.policy.special
    pieces = token_bytes(policy.processor.tokenizer)
    automaton = compile_automaton(find_task(config.task).grammar, pieces, special.eos)
    settings = settings_from(RlSettings, config, eos=special.eos, pad=special.pad)
    optimizer = make_optimizer(
      settings_from(
        OptimizerSettings, config.optimizer, total_steps=config.steps * config.minibatches
      )
    )
    read = rl_data.question_reader(config, policy, sampling_mesh, config.data.records)
    rl_data.refuse_evaluation_records(config, read.source)
    requests_at = rl_data.training_requests(config, policy, sampling_mesh, read)
    engine = compiled_engine(trainable, sampling_mesh, config.dtype)
    validate = rl_data.validation(config, policy, sampling_mesh, automaton, engine)
  record_settings(config, workdir)
  groups = rollout_buffer.rollout_shapes(requests_at(0).prompts, automaton, settings)
  constants = policy_optimization.Constants(
    forbidden_tokens=policy.forbidden_tokens,
    frozen=trainable.frozen,
    reference=policy_optimization.reference_policy(trainable.mesh, trainable.trained, settings),
  )
  updates = functools.partial(
    policy_optimization.rl_loop,
    requests_at=requests_at,
    sample=group_sampler(engine, automaton, mesh, sampling_mesh, groups, settings, config.seed),
    collect_round=functools.partial(rollout_buffer.collect, settings=settings),
    update=functools.partial(
      policy_optimization.update_policy,
      constants=constants,
      model=policy.model,
      optimizer=optimizer,
      settings=settings,
    ),
    settings=settings,
    steps=config.steps,
  )
  train = place_state(mesh, trainable.trained, optimizer)
  with open_run(config, workdir, trainable) as files:
    state = rollout_buffer.place_state(mesh, train, groups, settings)
    if not files.is_new:
      state, host = files.restore(state)
      with user_errors():
        for number in rl_data.own_skipped(host["skipped"]):
          read(number)  # reported and counted as if this start had met it

    def host_state() -> dict[str, Any]:
      return {"skipped": hosts.all_gather_json(read.skipped)}

    state = fit(config, state, updates, validate, files, host_state)
  write_trained(workdir, files.base, policy.model, mesh, trainable.subset, state.train.params)


def fit(
  config: Config,
  state: RlState,
  updates: Callable,
  validate: Callable[[Params], float],
  files: RunFiles,
  host_state: Callable[[], dict[str, Any]],
) -> RlState:
  """Runs the loop to its end; writes metrics, checkpoints and the progress bar."""
  with progress("dapo", int(state.batches), config.steps) as bar:
    if files.is_new:
      files.metrics.write(0, {"validation/accuracy": validate(state.train.params)})
    started = phase_started = time.perf_counter()
    sampling_s = 0.0
    for state, sums in updates(state):  # noqa: B020 (each turn yields the next state)
      batch = int(state.batches)  # waits for the round or the update
      now = time.perf_counter()
      if sums is None:
        sampling_s += now - phase_started
      else:
        times = {"step_s": now - started, "sampling_s": sampling_s, "update_s": now - phase_started}
        values = metrics.means(sums) | {f"time/{name}": value for name, value in times.items()}
        if batch % config.validate_steps == 0 or batch == config.steps:
          values["validation/accuracy"] = validate(state.train.params)
        files.metrics.write(batch, values)
        show_progress(config, batch, values, bar)
        started, sampling_s = time.perf_counter(), 0.0
      event = int(state.cursor) // config.rollout_batch_size + batch
      preempted = hosts.preempted(event)
      if preempted or event % config.checkpoint_steps == 0 or batch == config.steps:
        files.save(event, state, host_state())
      if preempted:
        raise hosts.Preempted
      phase_started = time.perf_counter()
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


COMMAND = Command("dapo", run, check=check, multi_process=True)
