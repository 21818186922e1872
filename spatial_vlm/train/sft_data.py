"""What supervised fine-tuning learns from: conversations from files, or images rendered during training."""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from spatial_vlm import hosts
from spatial_vlm.config import Config, UsageError
from spatial_vlm.data import batch_plan, pipeline, skipped_records
from spatial_vlm.data.batch_plan import BATCHINGS
from spatial_vlm.data.conversations import ConversationSource
from spatial_vlm.data.mixing import Joined, mixed_order
from spatial_vlm.data.reading import ReadOptions, scan
from spatial_vlm.data.records import BadRecord, UnusableRecord
from spatial_vlm.data.scenes.source import SceneImage, SceneImageSource
from spatial_vlm.data.sizes import SizedSource
from spatial_vlm.data.split_guard import asked_pairs, refuse_shared_records
from spatial_vlm.process_rows import Shard
from spatial_vlm.processor.chat import (
  Encoded,
  Processor,
  Size,
  cast_patches,
  collate_batch,
  encode,
  measure,
)
from spatial_vlm.synthesis.scene_teacher import pretrain_messages
from spatial_vlm.types import Batch, Params


class SftData(NamedTuple):
  """The batches of a run."""

  batches: grain.DatasetIterator
  steps: int
  padding: dict[str, tuple[int, int]]
  """(padded slots, all slots) of tokens and of patches, where the plan determines them before the first batch."""
  bad: list[BadRecord]
  """Lines that hold no conversation."""
  shard: Shard
  """The rows of a batch that this process reads."""
  keeps_batches: Callable[[int], bool]
  """Fewer epochs → whether a run of so many reads the same batches, up to its end."""

  def host_state(self) -> dict[str, Any]:
    """Returns the position of all processes in the data, for a checkpoint; all processes call it."""
    return {"batches": hosts.all_gather_json(self.batches.get_state())}

  def restore(self, host: Mapping[str, Any]) -> None:
    """Continues at the position of a checkpoint."""
    self.batches.set_state(skipped_records.own_state(host["batches"], self.shard))

  def skipped_by_file(self) -> Mapping[str, int]:
    """Returns file -> number of records that any process skipped; all processes call it."""
    skipped = {
      number: bad
      for state in hosts.all_gather_json(self.batches.get_state())
      for number, bad in skipped_records.skipped(state).items()
    }
    return collections.Counter(record.file for record in [*self.bad, *skipped.values()])


def open_data(config: Config, processor: Processor, shard: Shard) -> SftData:
  """Opens the conversations of the config's files, or its stream of rendered images.

  `shard` holds the rows that this process reads.
  """
  source = rendered_images if config.data.pretrain.scenes else conversations_of_files
  return source(config, processor, shard)


def conversations_of_files(config: Config, processor: Processor, shard: Shard) -> SftData:
  """Plans batches of conversations by size, before any image is decoded."""
  data = config.data
  sources = [
    ConversationSource(conversations, images, data.max_bad_share, data.system_turns)
    for conversations, images, _ in ((data.conversations, data.images, 1), *data.mix)
  ]
  questions = [question for source in sources for question in source.questions]
  remedy = "remove them from the conversations, or evaluate on another set"
  refuse_shared_records(questions, [data.evaluation], remedy, asked_pairs)
  joined, shapes = Joined(sources), [Size(*shape) for shape in data.shapes]
  sizes, unusable = scan(
    Joined([SizedSource(source) for source in sources]),
    functools.partial(size_of, processor, batch_plan.largest(shapes)),
    workers=data.workers,
    max_bad_share=data.max_bad_share,
  )

  def plan_of(epochs: int) -> list[batch_plan.PlannedBatch]:
    order = mixed_order(
      [[number for number in numbers if number in sizes] for numbers in joined.numbers()],
      [1.0, *(weight for _, _, weight in data.mix)],
      epochs=epochs,
      seed=config.seed,
    )
    return BATCHINGS[data.batching](order, sizes, shapes, config.batch_size)

  def keeps_batches(epochs: int) -> bool:
    shorter = plan_of(epochs)
    return plan[: len(shorter)] == shorter

  plan = plan_of(config.epochs)
  if () in plan[0].rows:
    raise ValueError(
      f"{len(sizes)} records × {config.epochs} epochs do not fill one batch of {config.batch_size} rows;"
      " lower batch_size, or give more records or epochs."
    )
  batches = pipeline.planned_batches(
    joined,
    functools.partial(encode, processor),
    functools.partial(collate_planned, processor, config.dtype),
    plan,
    read_options(config, shard),
    known_bad=unusable,
  )
  bad = [record for source in sources for record in source.bad]
  return SftData(batches, len(plan), batch_plan.padding(plan, sizes), bad, shard, keeps_batches)


def rendered_images(config: Config, processor: Processor, shard: Shard) -> SftData:
  """Renders images while training; they are random already, and their stages have an order."""
  data, pretrain = config.data, config.data.pretrain
  shapes = [Size(*shape) for shape in data.shapes]
  if shard != Shard() and len(shapes) > 1:
    raise ValueError(
      f"data.shapes has {len(shapes)} shapes; several processes that render images need one: none knows the sizes "
      f"of the others: {tuple(batch_plan.largest(shapes))}"
    )
  stages = Joined(
    [
      SceneImageSource(
        "pretrain", config.seed + stage, count, objects=(1, most), same_shape=pretrain.same_shape
      )
      for stage, (count, most) in enumerate(zip(pretrain.scenes, pretrain.objects, strict=True))
    ]
  )
  to_messages = functools.partial(
    image_messages, config.seed, pretrain.requests, pretrain.list_share
  )
  order = pipeline.EpochOrder(config.batch_size, config.seed, config.epochs, shuffle=False)
  batches = pipeline.batches(
    stages,
    functools.partial(encode_fitting, processor, batch_plan.largest(shapes), to_messages),
    functools.partial(collate_unplanned, processor, config.dtype, shapes),
    order,
    read_options(config, shard),
  )
  count = order.num_batches(len(stages))
  # The order has no randomness of its own and ends with a whole batch: a longer run goes on with the next one.
  return SftData(batches, count, {}, [], shard, keeps_batches=lambda epochs: True)


def read_options(config: Config, shard: Shard) -> ReadOptions:
  """Returns how this process reads records."""
  data = config.data
  return ReadOptions(data.workers, max_bad_share=data.max_bad_share, shard=shard)


def image_messages(seed: int, requests: int, list_share: float, image: SceneImage):
  """Returns requests to caption and ground one rendered image; a function of the seed and the image's number."""
  rng = np.random.default_rng((seed, image.id))
  return pretrain_messages(image.scene, image.image, rng, requests, list_share)


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


def collate_planned(
  processor: Processor, dtype: str, rows: Sequence[Sequence[Encoded]], shape: Size
) -> Batch:
  """Collates rows in the shape of the plan."""
  return cast_patches(collate_batch(rows, processor, shape), dtype)


def collate_unplanned(
  processor: Processor, dtype: str, shapes: list[Size], rows: list[Encoded]
) -> Batch:
  """Collates rows in the smallest shape that holds them."""
  shape = batch_plan.smallest(shapes, [row.size for row in rows])
  return collate_planned(processor, dtype, [[row] for row in rows], shape)


def check_scratch(config: Config, frozen: Params) -> None:
  """Raises UsageError where freshly drawn weights would be frozen: no file could restore them."""
  if config.from_scratch and frozen:
    raise UsageError(
      f"trainable is {tuple(config.trainable)}, but from_scratch draws all weights and no file holds frozen ones; set "
      "trainable=('.*',) and lora.rank=0"
    )
