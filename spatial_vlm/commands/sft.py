"""Fine-tune a model on conversations: the four steps of a teacher, or plain answers.

Reads a Hugging Face folder and a file of conversations, trains on the assistant's words alone, and writes a
Hugging Face folder to WORKDIR/export. Progress goes to the terminal, metrics to WORKDIR/metrics and
WORKDIR/tensorboard. Interrupted at any moment, the same command goes on from the last checkpoint.

  spatial-vlm sft --config configs/sft.py:tiny --workdir runs/sft
  spatial-vlm sft --config configs/sft.py:8b --config.checkpoint=Qwen3-VL-8B-Instruct \\
    --config.data.conversations=chains.jsonl --config.data.images=coco/train2017
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from spatial_vlm import metrics, sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.setup import (
  HARMLESS,
  check_positive,
  check_training,
  find_folder,
  load_policy,
  place_state,
  progress,
  settings_of,
  user_errors,
  write_policy,
)
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import pipeline
from spatial_vlm.data.conversations import ConversationSource
from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.data.scenes import Picture, PictureSource
from spatial_vlm.optim import OptimizerSettings, make_optimizer
from spatial_vlm.processor.chat import Processor, collate_batch, encode
from spatial_vlm.synthesis.scene_teacher import pretrain_messages
from spatial_vlm.train.sft import SftSettings, sft_loop, sft_step


def run(config: Config, workdir, args) -> None:
  with user_errors():
    check(config)
    policy = load_policy(config.checkpoint, config.seed if config.from_scratch else None)
    source, to_messages = training_data(config)
    total_steps = pipeline.num_batches(len(source), config.batch_size, config.epochs)
    optimizer = make_optimizer(
      settings_of(OptimizerSettings, config.optimizer, total_steps=total_steps)
    )
    settings = settings_of(SftSettings, config)
    mesh = sharding.make_mesh(config.mesh)
    batches = training_batches(config, source, to_messages, policy.processor)
    snapshot(config, workdir, HARMLESS)
  state = place_state(mesh, policy.params, optimizer)
  step = functools.partial(sft_step, model=policy.model, optimizer=optimizer, settings=settings)
  with Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints:
    if checkpoints.latest() is not None:
      with user_errors():
        state, host = checkpoints.restore(state)
      batches.set_state(host["batches"])
    first = int(state.step)
    rows = (sharding.put_batch(mesh, batch) for batch in batches)
    with metrics.MetricsWriter(workdir) as writer, progress("sft", first, total_steps) as bar:
      sums: metrics.Sums = {}
      updates = sft_loop(state, rows, step, total_steps - first)
      for number, (state, of_step) in enumerate(updates, first + 1):
        sums = metrics.add(sums, of_step)
        if number % config.log_steps == 0 or number == total_steps:
          values = metrics.means(sums)
          writer.write(number, values)
          bar.set_postfix(loss=f"{values['loss']:.3f}")
          sums = {}
        if number % config.checkpoint_steps == 0 or number == total_steps:
          checkpoints.save(number, state, {"batches": batches.get_state()})
        bar.update()
  if bad := pipeline.left_out(batches.get_state()):
    print(f"{len(bad)} records were left out; the log says which and why")
  write_policy(workdir / "export", find_folder(config.checkpoint), policy.model, state.params)


def check(config: Config) -> None:
  """Raises UsageError, with numbers and remedy, for settings that cannot work together."""
  check_training(config)
  check_positive(
    config, "batch_size", "micro_batches", "chunk_tokens", "log_steps", "checkpoint_steps", "epochs"
  )
  if config.batch_size % config.micro_batches:
    raise UsageError(
      f"batch_size {config.batch_size} is no multiple of micro_batches {config.micro_batches}; change one of them"
    )
  if config.checkpoint_steps % config.log_steps:
    raise UsageError(
      f"checkpoint_steps {config.checkpoint_steps} is no multiple of log_steps {config.log_steps}; a resumed run "
      "could not write the same metrics"
    )


def training_data(config: Config):
  """Random-access source, and the function that makes messages of what it holds."""
  data, pretrain = config.data, config.data.pretrain
  if pretrain.scenes:
    pictures = Stages(
      [
        PictureSource("pretrain", config.seed + stage, count, objects=(1, most))
        for stage, (count, most) in enumerate(zip(pretrain.scenes, pretrain.objects, strict=True))
      ]
    )
    return pictures, functools.partial(
      picture_messages, config.seed, pretrain.requests, pretrain.list_share
    )
  source = ConversationSource(data.conversations, data.images, data.max_bad_share)
  return source, lambda messages: messages


def training_batches(config: Config, source, to_messages, processor: Processor):
  """The rows of each batch that this process reads, in an order that a state of the iterator continues."""
  data = config.data
  return pipeline.batches(
    source,
    functools.partial(encode_row, processor, to_messages, data.max_tokens),
    functools.partial(
      collate_batch,
      processor=processor,
      tokens_bucket=data.token_bucket,
      patch_bucket=data.patch_bucket,
    ),
    batch_size=config.batch_size,
    seed=config.seed,
    epochs=config.epochs,
    shuffle=not data.pretrain.scenes,  # pictures are random already, and their stages have an order
    workers=data.workers,
    max_bad_share=data.max_bad_share,
    shard=pipeline.Shard(jax.process_index(), jax.process_count()),
  )


class Stages:
  """Sources one after another."""

  def __init__(self, sources: Sequence[PictureSource]):
    self.sources = sources
    self.ends = np.cumsum([len(source) for source in sources])

  def __len__(self) -> int:
    return int(self.ends[-1])

  def __getitem__(self, index: int) -> Picture:
    stage = self._stage(index)
    return self.sources[stage][self._within(stage, index)]

  def place(self, index: int) -> tuple[str, int]:
    stage = self._stage(index)
    return self.sources[stage].place(self._within(stage, index))

  def _stage(self, index: int) -> int:
    return int(np.searchsorted(self.ends, index, side="right"))

  def _within(self, stage: int, index: int) -> int:
    return index - int(self.ends[stage]) + len(self.sources[stage])


def picture_messages(seed: int, requests: int, list_share: float, picture: Picture):
  rng = np.random.default_rng((seed, picture.id))
  return pretrain_messages(picture.scene, picture.image, rng, requests, list_share)


def encode_row(processor: Processor, to_messages, max_tokens: int, example):
  """Raises UnusableRecord when the conversation is too long."""
  row = encode(processor, to_messages(example))
  if len(row.tokens) > max_tokens:
    raise UnusableRecord(
      f"the conversation has {len(row.tokens)} tokens, more than max_tokens {max_tokens}"
    )
  return row
