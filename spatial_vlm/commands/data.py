"""Look at a set of records, check it, and prepare it for training.

Reads VSR as it is published (JSONL, or Parquet from Hugging Face), or rendered scenes, with pictures from a folder, a
tar or a zip. Shows its sizes, the balance of its labels, how far the validators agree, what cannot be used and why, and
how much of the evaluation set stands among the training records: such a training set is refused.

Writes WORKDIR/SPLIT.jsonl (the records that can be used), statistics.json, report.md and contact_sheet.png to look at;
with store.shards above 0, also WORKDIR/store: all examples with their pictures, shuffled, in a few files that load
fast; other commands read its pictures by --config.data.images=WORKDIR/store/SPLIT.json. Interrupted, it goes on where
it was.

  spatial-vlm data --workdir runs/data
  spatial-vlm data --config configs/data.py:8b --config.data.folder=vsr/random \\
    --config.data.images=coco/train2017.zip,coco/val2017.zip --workdir runs/vsr
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import split_report, store, vsr
from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.image_files import MissingImage
from spatial_vlm.data.images import ImageFiles
from spatial_vlm.data.pipeline import Reader, prompt_order
from spatial_vlm.data.records import BadRecord, JsonlSource, Record, TooManyBadRecords
from spatial_vlm.data.split_guard import Pair, read_pairs, refuse_shared, shared_pairs
from spatial_vlm.data.statistics import describe
from spatial_vlm.hosts import user_errors
from spatial_vlm.processor.image import png

TRAIN, TEST = "train", "test"


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    splits = read_splits(config)
    evaluation = evaluation_pairs(config, splits)
    overlap = describe_overlap(config, splits, evaluation)
  if config.drop_shared and overlap:
    splits[TRAIN] = without(splits[TRAIN], evaluation)
  statistics = {name: split.describe() for name, split in splits.items()}
  print(split_report.summary(statistics, overlap))
  for split in splits.values():
    split.check(config.data.max_bad_share)
  if overlap:
    remedy = "set drop_shared to leave them out of it, or evaluate on another set"
    refuse_shared(shared_pairs(splits[TRAIN].pairs, evaluation), len(evaluation), remedy)
  snapshot(config, workdir)
  write_records(splits, workdir)
  notes = prepare(config, workdir) if config.data.images else {}
  result = {"splits": statistics, "overlap": overlap, "store": notes}
  (workdir / "statistics.json").write_text(json.dumps(result, indent=2) + "\n")
  text = split_report.markdown_report(statistics, overlap, notes, bool(config.data.images))
  (workdir / "report.md").write_text(text)
  print(f"\nrecords, statistics.json and report.md are in {workdir}")


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  if not config.data.splits or config.sheet < 1:
    raise UsageError(
      f"splits is {config.data.splits} and sheet is {config.sheet}; give at least one of each"
    )
  if not 0 <= config.data.max_bad_share <= 1:
    raise UsageError(f"max_bad_share is {config.data.max_bad_share}; it is a share, from 0 to 1")
  if config.store.shards:
    store_settings(config).check()
    if not config.data.images:
      raise UsageError(
        "a store holds pictures, but images is empty; give both, or set store.shards to 0"
      )


def store_settings(config: Config) -> store.Settings:
  return store.Settings(config.store.shards, config.seed, config.store.max_pixels)


@dataclasses.dataclass(frozen=True)
class Split:
  """A split's usable records, and the others: `bad` lists all of them, `missing` the pictures that are not there."""

  records: list[Record]
  bad: list[BadRecord]
  missing: list[str]

  @property
  def pairs(self) -> list[Pair]:
    return [(record.image, record.caption) for record in self.records]

  def describe(self) -> dict[str, Any]:
    missing = {"count": len(self.missing), "first": self.missing[: split_report.SHOWN]}
    bad = [dataclasses.asdict(bad) for bad in self.bad]
    return {**describe(self.records), "skipped": bad, "missing_images": missing}

  def check(self, max_bad_share: float) -> None:
    """Raises TooManyBadRecords."""
    total = len(self.records) + len(self.bad)
    if len(self.bad) > max_bad_share * total or not self.records:
      raise TooManyBadRecords(self.bad, total, max_bad_share)


def read_splits(config: Config) -> dict[str, Split]:
  """Reads all splits and looks for their pictures; UsageError for files that are missing or not the published ones."""
  data = config.data
  published, allow_subset = data.published, data.allow_subset
  read = {name: vsr.read_split(data.folder, name) for name in data.splits}
  if published:
    records = {name: split.records for name, split in read.items()}
    vsr.check_published(published, records, allow_subset)
  pictures = ImageFiles(data.images) if data.images else None
  return {name: with_pictures(name, split, pictures) for name, split in read.items()}


def with_pictures(name: str, split: vsr.Split, pictures: ImageFiles | None) -> Split:
  """Looks for the picture of each record; none is opened."""
  if pictures is None:
    return Split(split.records, split.bad, [])
  records, bad, missing = [], list(split.bad), {}
  for file, line, record in tqdm(split.listed, desc=f"{name} pictures", dynamic_ncols=True):
    try:
      pictures.find(record.image)
      records.append(record)
    except MissingImage as error:
      bad.append(BadRecord(file, line, str(error)))
      missing[record.image] = None
  return Split(records, bad, list(missing))


def evaluation_pairs(config: Config, splits: Mapping[str, Split]) -> list[Pair]:
  """Image and caption of what is evaluated on; empty when that is not known."""
  if config.evaluation:
    return read_pairs(config.evaluation)
  return splits[TEST].pairs if TEST in splits else []


def describe_overlap(
  config: Config, splits: Mapping[str, Split], evaluation: Sequence[Pair]
) -> dict[str, Any] | None:
  """How many of the evaluation pairs stand in `train`; None when there is nothing to compare."""
  if TRAIN not in splits or not evaluation:
    return None
  shared = shared_pairs(splits[TRAIN].pairs, evaluation)
  return {
    "evaluation": config.evaluation or f"the split {TEST!r}",
    "pairs": len(evaluation),
    "shared": len(shared),
    "first": shared[: split_report.SHOWN],
    "dropped": config.drop_shared,
  }


def without(split: Split, evaluation: Sequence[Pair]) -> Split:
  """Leaves out the records that stand in the evaluation set; raises UsageError if there are no others."""
  shared = set(shared_pairs(evaluation, split.pairs))
  pairs = zip(split.records, split.pairs, strict=True)
  if not (records := [record for record, pair in pairs if pair not in shared]):
    raise UsageError("all training records stand in the evaluation set; give another one")
  return dataclasses.replace(split, records=records)


def write_records(splits: Mapping[str, Split], workdir: epath.Path) -> None:
  for name, split in splits.items():
    lines = (json.dumps(record.to_json()) + "\n" for record in split.records)
    (workdir / f"{name}.jsonl").write_text("".join(lines))


def prepare(config: Config, workdir: epath.Path) -> dict[str, Any]:
  """Draws the contact sheet and makes the store; returns what there is to say about the store of each split."""
  data, notes = config.data, {}
  for position, name in enumerate(data.splits):
    boxes = epath.Path(data.folder) / f"{name}.boxes.jsonl"
    source = JsonlSource(
      workdir / f"{name}.jsonl", data.images, boxes if boxes.exists() else None, data.max_bad_share
    )
    if position == 0:
      (workdir / "contact_sheet.png").write_bytes(draw_sheet(source, config))
    if config.store.shards:
      with tqdm(total=len(source), desc=f"{name} store", dynamic_ncols=True) as bar:
        written = store.write_store(
          workdir / "store", name, source, store_settings(config), bar.update
        )
      notes[name] = {
        "records": len(written),
        "skipped": [dataclasses.asdict(b) for b in written.bad],
      }
  return notes


def draw_sheet(source: JsonlSource, config: Config) -> bytes:
  """Some examples, drawn from the seed, as a PNG."""
  read = Reader(source, lambda example: example, config.data.max_bad_share)
  order = map(prompt_order(config.seed, len(source)), range(len(source)))
  chosen = (example for number in order if (example := read(number)) is not None)
  return png(contact_sheet(list(itertools.islice(chosen, config.sheet))))


COMMAND = Command("data", run, check=check)
