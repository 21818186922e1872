"""Fine-tune a model on conversations: the four steps of a teacher, or plain answers.

Reads a Hugging Face folder and a file of conversations, trains on the assistant's tokens, and writes a Hugging Face
folder to WORKDIR/export. Progress goes to the terminal, metrics to WORKDIR/metrics and WORKDIR/tensorboard. After an
interruption the same command resumes from the last checkpoint.

`trainable` holds patterns of parameter paths: all parameters, all but the vision tower, or LoRA factors of frozen
kernels. WORKDIR/export has LoRA merged; WORKDIR/adapter holds the adapter alone, as PEFT reads it.

  spatial-vlm sft --config configs/sft.py:tiny --workdir runs/sft
  spatial-vlm sft --config configs/sft.py:8b --config.checkpoint=Qwen3-VL-8B-Instruct \\
    --config.data.conversations=chains.jsonl --config.data.images=coco/train2017 --config.data.evaluation=test.jsonl

  spatial-vlm sft --config configs/sft.py:tiny --config.trainable="('(text|head)/.*',)" …   # vision tower frozen
  spatial-vlm sft --config configs/sft.py:8b --config.trainable="('.*/lora_[ab]',)" --config.lora.rank=16 …

Further files of conversations are mixed in by weight:

    --config.data.mix="(('captions.jsonl', 'flickr/images', 0.5),)"   # one of them for every two of chains.jsonl
"""

import argparse
import functools
from collections.abc import Callable

import jax
from etils import epath

from spatial_vlm import hosts, metrics, sharding
from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, leaves, settings_from
from spatial_vlm.hosts import user_errors
from spatial_vlm.inputs import check_inputs
from spatial_vlm.optim.optimizers import optimizer_from_config
from spatial_vlm.process_rows import check_rows, make_global_batch, process_shard
from spatial_vlm.tasks import find_training_task
from spatial_vlm.train.prolonging import RunLength
from spatial_vlm.train.run import (
  RunFiles,
  checkpoint_cadence,
  load_trainable,
  open_run,
  place_state,
  progress,
  record_settings,
)
from spatial_vlm.train.sft import SftSettings, check, sft_loop, sft_step
from spatial_vlm.train.sft_data import SftData, check_scratch, open_data
from spatial_vlm.train.trained_weights import write_trained
from spatial_vlm.types import TrainState


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  """Loads the policy and the data, trains, and writes the weights."""
  with user_errors():
    check(config)
    find_training_task(config.task)
    check_inputs(config, inputs(config))
    mesh = sharding.make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size)
    trainable = load_trainable(config, mesh, config.from_scratch)
    check_scratch(config, trainable.frozen)
    data = open_data(config, trainable.policy.processor, process_shard(mesh))
    optimizer = optimizer_from_config(config.optimizer, data.steps)
    settings = settings_from(SftSettings, config)
  record_settings(config, workdir, RunLength("epochs", data.keeps_batches))
  model = trainable.policy.model
  step = functools.partial(
    sft_step, frozen=trainable.frozen, model=model, optimizer=optimizer, settings=settings
  )
  state = place_state(mesh, trainable.trained, optimizer)
  with open_run(config, workdir, trainable) as files:
    if not files.is_new:
      state, host = files.restore(state)
      with user_errors():
        data.restore(host)
    rows = (make_global_batch(mesh, batch) for batch in data.batches)
    updates = functools.partial(sft_loop, batches=rows, step=step)
    state = fit(config, workdir.name, state, data, updates, files)
  print_skipped(data)
  write_trained(workdir, leaves(config), files.base, model, mesh, trainable.subset, state.params)


def inputs(config: Config) -> list[str]:
  """Returns the leaves that name files to read."""
  data = [] if config.data.pretrain.scenes else ["data.conversations", "data.images", "data.mix"]
  return ["checkpoint", *data, "data.evaluation"]


def fit(
  config: Config,
  name: str,
  state: TrainState,
  data: SftData,
  updates: Callable,
  files: RunFiles,
) -> TrainState:
  """Runs the loop to its end; writes metrics, checkpoints and the progress bar."""
  first = int(state.step)
  sums: metrics.Sums = {}
  preempted = False
  is_due = checkpoint_cadence(config.checkpoint_steps, config.checkpoint_minutes)
  with progress(name, first, data.steps) as bar:
    # Counted here: reading state.step would wait for the device in every step.
    steps = enumerate(updates(state, steps=data.steps - first), first + 1)
    for number, (state, of_step) in steps:
      sums = metrics.add(sums, of_step)
      is_last = number == data.steps
      is_logged = number % config.log_steps == 0
      if is_logged or is_last:
        values = metrics.means(sums)
        files.metrics.write(number, values)
        bar.set_postfix(loss=f"{values['loss']:.3f}")
        sums = {}
      preempted |= hosts.preempted(number)
      ends_early = preempted and is_logged  # so that a resumed run logs the same
      due = is_last or (is_logged and is_due(number))
      bar.update()
      files.save(number, state, data.host_state, is_due=due, ends_early=ends_early)
  return state


def print_skipped(data: SftData) -> None:
  """Prints how many records of each file were skipped, and the share of padding."""
  counts = data.skipped_by_file()  # gathers from all processes
  if jax.process_index() > 0:
    return
  for file, count in counts.items():
    print(f"{count} records of {file} were skipped; the log says which and why")
  if shares := metrics.means(data.padding):
    named = [f"{share:.1%} of the {kind} slots" for kind, share in shares.items()]
    print(f"padding: {', '.join(named)}")


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  export = workdir / "export"
  return ending(
    f"{export} (Hugging Face folder of the policy)",
    args.config,
    ["answer", "PHOTO", "STATEMENT", "--checkpoint", export],
    ["dapo", leaf("checkpoint", export)],
    ["evaluate", leaf("checkpoint", export)],
  )
