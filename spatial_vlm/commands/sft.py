"""Fine-tune a model on conversations: the four steps of a teacher, or plain answers.

Reads a Hugging Face folder and a file of conversations, trains on the assistant's words alone, and writes a
Hugging Face folder to WORKDIR/export. Progress goes to the terminal, metrics to WORKDIR/metrics and
WORKDIR/tensorboard. Interrupted at any moment, the same command goes on from the last checkpoint.

What trains is told by patterns of parameter paths: all of it, all but the vision tower, or low-rank pairs beside frozen
kernels (LoRA). WORKDIR/export has the pairs merged; WORKDIR/adapter holds them alone, as PEFT reads them.

  spatial-vlm sft --config configs/sft.py:tiny --workdir runs/sft
  spatial-vlm sft --config configs/sft.py:8b --config.checkpoint=Qwen3-VL-8B-Instruct \\
    --config.data.conversations=chains.jsonl --config.data.images=coco/train2017 --config.data.evaluation=test.jsonl

  spatial-vlm sft --config configs/sft.py:tiny --config.trainable="('(text|head)/.*',)" …   # vision tower frozen
  spatial-vlm sft --config configs/sft.py:8b --config.trainable="('.*/lora_[ab]',)" --config.lora.rank=16 …

Further files of conversations are mixed in by weight:

    --config.data.mix="(('captions.jsonl', 'flickr/images', 0.5),)"   # one of them for every two of chains.jsonl
"""

import collections
import functools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np

from spatial_vlm import hosts, metrics, sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, settings_from
from spatial_vlm.data import batch_plan, pipeline, split_guard
from spatial_vlm.data.batch_plan import BATCHINGS
from spatial_vlm.data.conversations import ConversationSource
from spatial_vlm.data.mixing import Joined, mixed_order
from spatial_vlm.data.records import BadRecord, UnusableRecord
from spatial_vlm.data.scenes.source import Picture, PictureSource
from spatial_vlm.data.sizes import SizedSource
from spatial_vlm.hosts import user_errors
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.parameters.partition import subset_from_config
from spatial_vlm.processor.chat import Encoded, Processor, Size, collate_batch, encode, measure
from spatial_vlm.synthesis.scene_teacher import pretrain_messages
from spatial_vlm.train.run import (
  check_rows,
  partition_policy,
  place_state,
  progress,
  record_settings,
)
from spatial_vlm.train.sft import SftSettings, check, sft_loop, sft_step
from spatial_vlm.train.trained_weights import base_record, check_base, write_trained
from spatial_vlm.types import Params


def run(config: Config, workdir, args) -> None:
  with user_errors():
    check(config)
    mesh = sharding.make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size)
    subset = subset_from_config(config, config.lora)
    scratch_seed = config.seed if config.from_scratch else None
    policy = load_policy(config.checkpoint, scratch_seed, mesh, subset)
    trained, frozen = partition_policy(mesh, policy.params, subset, config.seed)
    check_scratch(config, frozen)
    data = (drawn if config.data.pretrain.scenes else read)(config, policy.processor)
    batches, total_steps = data.batches, data.steps
    optimizer = make_optimizer(
      settings_from(OptimizerSettings, config.optimizer, total_steps=total_steps)
    )
    settings = settings_from(SftSettings, config)
  record_settings(config, workdir)
  state = place_state(mesh, trained, optimizer)
  base = base_record(config, frozen)
  step = functools.partial(
    sft_step, frozen=frozen, model=policy.model, optimizer=optimizer, settings=settings
  )
  with (
    jax.set_mesh(mesh),  # for kernels, which are cut for it by hand
    Checkpoints(workdir / "checkpoints", config.max_to_keep) as checkpoints,
  ):
    if checkpoints.latest() is not None:
      with user_errors():
        state, host = checkpoints.restore(state)
        check_base(host["base"], base["checksums"])
        batches.set_state(pipeline.own_state(host["batches"], this_process()))
    first = int(state.step)
    rows = (sharding.make_global_batch(mesh, batch) for batch in batches)
    with (
      metrics.MetricsWriter(workdir) as writer,
      progress(workdir.name, first, total_steps) as bar,
    ):
      sums: metrics.Sums = {}
      preempted = False
      updates = sft_loop(state, rows, step, total_steps - first)
      for number, (state, of_step) in enumerate(updates, first + 1):
        sums = metrics.add(sums, of_step)
        if number % config.log_steps == 0 or number == total_steps:
          values = metrics.means(sums)
          writer.write(number, values)
          bar.set_postfix(loss=f"{values['loss']:.3f}")
          sums = {}
        preempted |= hosts.preempted(number)
        ends_early = preempted and number % config.log_steps == 0  # a resumed run logs the same
        if ends_early or number % config.checkpoint_steps == 0 or number == total_steps:
          read_to = hosts.all_gather_json(batches.get_state())
          checkpoints.save(number, state, {"batches": read_to, "base": base})
        bar.update()
        if ends_early:
          raise hosts.Preempted
  report(data)
  write_trained(workdir, base, policy.model, mesh, subset, state.params)


def check_scratch(config: Config, frozen: Params) -> None:
  if config.from_scratch and frozen:
    raise UsageError(
      f"trainable {tuple(config.trainable)} would freeze weights that from_scratch draws and no file holds; train all"
      " of them: ('.*',) and lora.rank=0"
    )


class Data(NamedTuple):
  """What a run learns from."""

  batches: grain.DatasetIterator
  steps: int
  padding: dict[str, tuple[int, int]]
  """Of all batches together, where it is known before they are read."""
  bad: list[BadRecord]
  """Lines that hold no conversation."""


def read(config: Config, processor: Processor) -> Data:
  """Conversations from files, their batches planned by size."""
  data = config.data
  sources = [
    ConversationSource(conversations, images, data.max_bad_share)
    for conversations, images, _ in ((data.conversations, data.images, 1), *data.mix)
  ]
  guard(config, sources)
  joined, shapes = Joined(sources), [Size(*shape) for shape in data.shapes]
  sizes, unusable = pipeline.scan(
    Joined([SizedSource(source) for source in sources]),
    functools.partial(size_of, processor, batch_plan.largest(shapes)),
    workers=data.workers,
    max_bad_share=data.max_bad_share,
  )
  order = mixed_order(
    [[number for number in numbers if number in sizes] for numbers in joined.numbers()],
    [1.0, *(weight for _, _, weight in data.mix)],
    epochs=config.epochs,
    seed=config.seed,
  )
  plan = BATCHINGS[data.batching](order, sizes, shapes, config.batch_size)
  if () in plan[0].rows:
    raise ValueError(
      f"{len(sizes)} records × {config.epochs} epochs do not fill one batch of {config.batch_size} rows;"
      " lower batch_size, or give more records or epochs."
    )
  batches = pipeline.planned(
    joined,
    functools.partial(encode, processor),
    functools.partial(collate_batch, processor=processor),
    plan,
    workers=data.workers,
    max_bad_share=data.max_bad_share,
    known_bad=unusable,
    shard=this_process(),
  )
  bad = [record for source in sources for record in source.bad]
  return Data(batches, len(plan), batch_plan.padding(plan, sizes), bad)


def guard(config: Config, sources: Sequence[ConversationSource]) -> None:
  """Raises UsageError when a conversation asks what is evaluated on."""
  if file := config.data.evaluation:
    questions = (question for source in sources for question in source.questions)
    remedy = f"leave those of {file} out of the conversations, or evaluate on another set"
    split_guard.guard(questions, file, remedy, split_guard.asked_pairs)


def drawn(config: Config, processor: Processor) -> Data:
  """Pictures drawn on the way; they are random already, and their stages have an order."""
  data, pretrain = config.data, config.data.pretrain
  shapes = [Size(*shape) for shape in data.shapes]
  if this_process().count > 1 and len(shapes) > 1:
    raise ValueError(
      "data.shapes has several shapes; pictures drawn on the way by several processes need one, since none knows"
      f" the sizes of the others: {tuple(batch_plan.largest(shapes))}"
    )
  stages = Joined(
    [
      PictureSource("pretrain", config.seed + stage, count, objects=(1, most))
      for stage, (count, most) in enumerate(zip(pretrain.scenes, pretrain.objects, strict=True))
    ]
  )
  to_messages = functools.partial(
    picture_messages, config.seed, pretrain.requests, pretrain.list_share
  )
  batches = pipeline.batches(
    stages,
    functools.partial(encode_fitting, processor, batch_plan.largest(shapes), to_messages),
    functools.partial(collate_unplanned, processor, shapes),
    batch_size=config.batch_size,
    seed=config.seed,
    epochs=config.epochs,
    shuffle=False,
    workers=data.workers,
    max_bad_share=data.max_bad_share,
    shard=this_process(),
  )
  steps = pipeline.num_batches(len(stages), config.batch_size, config.epochs)
  return Data(batches, steps, padding={}, bad=[])


def this_process() -> pipeline.Shard:
  return pipeline.Shard(jax.process_index(), jax.process_count())


def report(data: Data) -> None:
  """What was left out of each file, and how much of the batches was padding."""
  met = {
    n: bad
    for state in hosts.all_gather_json(data.batches.get_state())
    for n, bad in pipeline.skipped(state).items()
  }
  if jax.process_index() > 0:
    return
  bad = [*data.bad, *met.values()]
  for file, count in collections.Counter(record.file for record in bad).items():
    print(f"{count} records of {file} were left out; the log says which and why")
  if shares := metrics.means(data.padding):
    named = [f"{share:.1%} of the {name[6:].split('_')[0]} slots" for name, share in shares.items()]
    print(f"padding: {', '.join(named)}")


def picture_messages(seed: int, requests: int, list_share: float, picture: Picture):
  rng = np.random.default_rng((seed, picture.id))
  return pretrain_messages(picture.scene, picture.image, rng, requests, list_share)


def size_of(processor: Processor, limit: Size, messages) -> Size:
  """Raises UnusableRecord when the conversation is larger than the limit."""
  return _fitting(measure(processor, messages), limit)


def encode_fitting(processor: Processor, limit: Size, to_messages, example) -> Encoded:
  """Raises UnusableRecord when the conversation is larger than the limit."""
  row = encode(processor, to_messages(example))
  _fitting(row.size, limit)
  return row


def _fitting(size: Size, limit: Size) -> Size:
  if not limit.holds(size):
    raise UnusableRecord(
      f"the conversation has {size.tokens} tokens and {size.patches} patches; the largest of data.shapes holds "
      f"{limit.tokens} and {limit.patches}"
    )
  return size


def collate_unplanned(processor: Processor, shapes: list[Size], rows: list[Encoded]):
  shape = batch_plan.smallest(shapes, [row.size for row in rows])
  return collate_batch([[row] for row in rows], processor, shape)


COMMAND = Command("sft", run, check=check, multi_process=True)
