"""Check a set of records, show its statistics, and prepare it for training.

Reads VSR as it is published (JSONL, or Parquet from Hugging Face), or rendered scenes, with images from a folder, a tar
or a zip. Shows the sizes, the balance of the labels, the agreement of the validators, the records that cannot be used
and why, and how many evaluation records are in the training set: such a training set is refused.

Writes WORKDIR/SPLIT.jsonl (the usable records), statistics.json, report.md and contact_sheet.png. With store.shards
above 0, it also writes WORKDIR/store: all examples with their images, shuffled, in a few files that load fast; other
commands read these images with --config.data.images=WORKDIR/store/SPLIT.json. An interrupted run continues where it
stopped.

  spatial-vlm data --workdir runs/data
  spatial-vlm data --config configs/data.py:8b --config.data.folder=vsr/random \\
    --config.data.images=coco/train2017.zip,coco/val2017.zip --workdir runs/vsr
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import split_report, store
from spatial_vlm.data.contact_sheet import contact_sheet, sampled
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.split_guard import read_pairs, refuse_shared_pairs, shared_pairs
from spatial_vlm.data.splits import Overlap, Split, read_splits, write_records
from spatial_vlm.hosts import user_errors
from spatial_vlm.inputs import check_inputs
from spatial_vlm.processor.image import png
from spatial_vlm.progress import progress_bar

TRAIN, TEST = "train", "test"
STORE = "store"
"""Subfolder of the workdir."""


def run(config: Config, workdir: epath.Path, args) -> None:
  data = config.data
  with user_errors():
    check(config)
    if config.store.shards:
      store.check_folder(workdir / STORE)
    check_inputs(config, ("data.folder", "data.images", "evaluation"))
    splits = read_splits(data.folder, data.splits, data.images, data.published, data.allow_subset)
    overlap = find_overlap(config, splits)
  if overlap and config.drop_shared:
    splits[TRAIN] = splits[TRAIN].without(overlap.pairs)
  statistics = {name: split.describe() for name, split in splits.items()}
  shared = overlap.describe(config.drop_shared) if overlap else None
  print(split_report.summary(statistics, shared))
  for split in splits.values():
    split.check(data.max_bad_share)
  if overlap and not config.drop_shared:
    remedy = "set drop_shared to remove them from it, or evaluate on another set"
    refuse_shared_pairs(overlap.shared, len(overlap.pairs), overlap.name, remedy)
  snapshot(config, workdir)
  write_records(splits, workdir)
  notes = prepare(config, workdir) if data.images else {}
  result = {"splits": statistics, "overlap": shared, "store": notes}
  (workdir / "statistics.json").write_text(json.dumps(result, indent=2) + "\n")
  text = split_report.markdown_report(statistics, shared, notes, bool(data.images))
  (workdir / "report.md").write_text(text)


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  if config.store.shards:
    store_settings(config).check()
    if not config.data.images:
      raise UsageError(
        "a store holds images, but images is empty; give both, or set store.shards to 0"
      )


def store_settings(config: Config) -> store.Settings:
  return store.Settings(config.store.shards, config.seed, config.store.max_pixels)


def find_overlap(config: Config, splits: Mapping[str, Split]) -> Overlap | None:
  """Returns what `train` shares with the evaluation set; None without one of them."""
  if config.evaluation:
    name, evaluation = config.evaluation, read_pairs(config.evaluation)
  else:
    name, evaluation = f"the split {TEST!r}", splits[TEST].pairs if TEST in splits else []
  if TRAIN not in splits or not evaluation:
    return None
  return Overlap(name, evaluation, shared_pairs(splits[TRAIN].pairs, evaluation))


def prepare(config: Config, workdir: epath.Path) -> dict[str, Any]:
  """Writes the contact sheet and the stores; returns the facts about each split's store for the report."""
  data, notes = config.data, {}
  for position, name in enumerate(data.splits):
    boxes = epath.Path(data.folder) / f"{name}.boxes.jsonl"
    source = JsonlSource(
      workdir / f"{name}.jsonl", data.images, boxes if boxes.exists() else None, data.max_bad_share
    )
    if position == 0:
      examples = sampled(source, config.seed, config.sheet)
      (workdir / "contact_sheet.png").write_bytes(png(contact_sheet(examples)))
    if config.store.shards:
      with progress_bar(f"{name} store", len(source)) as bar:
        folder, settings = workdir / STORE, store_settings(config)
        written = store.write_store(folder, name, source, settings, bar.update)
      bad = [dataclasses.asdict(bad) for bad in written.bad]
      notes[name] = {"records": len(written), "skipped": bad}
  return notes


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  has_store = bool(config.store.shards)
  images = workdir / STORE / f"{TRAIN}.json" if has_store else config.data.images
  names = [leaf("data.records", workdir / f"{TRAIN}.jsonl"), leaf("data.images", images)]
  names += [leaf("evaluation", config.evaluation or workdir / f"{TEST}.jsonl")]
  has_both = TRAIN in config.data.splits and (config.evaluation or TEST in config.data.splits)
  steps = [["synthesize", *names]] if has_both else []
  return ending(f"records, statistics.json and report.md in {workdir}", args.config, *steps)
