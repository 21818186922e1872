"""Make images of simple scenes with true and false statements about them, in VSR's format.

Writes, for each of train, validation and test, WORKDIR/SPLIT.jsonl (one VSR record a line), SPLIT.boxes.jsonl
(boxes of the objects) and the images to WORKDIR/images; chains.jsonl and direct.jsonl, the teacher's answers
to training statements that `sft` reads; test_captions.jsonl, a true and a false statement about each of some test
images (`caption_pairs`); and contact_sheet.png with examples. An interrupted run continues where it
stopped.

  spatial-vlm scenes --workdir runs/scenes
  spatial-vlm scenes --config.counts.train=20000 --config.seed=7 --workdir runs/more_scenes
"""

import argparse

from etils import epath

from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.data.scenes.writing import write_caption_pairs, write_split
from spatial_vlm.processor.image import png
from spatial_vlm.synthesis.scene_conversations import scene_conversations


def run(config: Config, workdir: epath.Path, args) -> None:
  sources = open_sources(config)
  snapshot(config, workdir)
  for source in sources.values():
    write_split(source, workdir)
  if config.caption_pairs:
    write_caption_pairs(sources["test"], config.caption_pairs, workdir)
  training = scene_conversations(sources["train"], config.chains)
  conversations.write(workdir / "chains.jsonl", training.chains)
  conversations.write(workdir / "direct.jsonl", training.direct)
  sheet = [sources["train"][index] for index in range(config.sheet)]
  (workdir / "contact_sheet.png").write_bytes(png(contact_sheet(sheet)))


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  open_sources(config)


def open_sources(config: Config) -> dict[str, SceneSource]:
  """Returns the sources of the three splits; raises UsageError for settings that cannot work together."""
  try:
    sources = {
      split: SceneSource(
        split, config.seed, config.counts[split], config.image_size, config.objects
      )
      for split in ("train", "validation", "test")
    }
  except ValueError as error:
    raise UsageError(str(error)) from error
  if (most := max(config.chains, config.sheet)) > config.counts.train:
    raise UsageError(
      f"chains or sheet needs {most} training examples, but counts.train is {config.counts.train}; lower the one or "
      "raise the other"
    )
  if config.caption_pairs > config.counts.test:
    raise UsageError(
      f"caption_pairs is {config.caption_pairs}; at most counts.test ({config.counts.test}) are there"
    )
  return sources


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  images = leaf("data.images", workdir / "images")
  return ending(
    f"records, images, chains.jsonl and contact_sheet.png in {workdir}",
    args.config,
    ["sft", leaf("data.conversations", workdir / "chains.jsonl"), images],
    ["synthesize", leaf("data.records", workdir / "train.jsonl"), images],
  )
