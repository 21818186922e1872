"""Compares the speed of the input pipeline, a plain Python loop and a torch DataLoader on the same records.

Draws photographs of COCO's sizes (JPEG) with statements and chains as long as VSR's, in a temporary folder. All readers
produce the same batches: decode, resize, cut into patches, encode the text, pad. They take turns; the table shows the
median over the rounds and, in brackets, the minimum and the maximum. The padding is measured on larger plans.

python launch/bench_pipeline.py
python launch/bench_pipeline.py --records 256 --rounds 9
"""

import argparse
import dataclasses
import functools
import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import jax
import numpy as np
import PIL.Image
import torch
from etils import epath
from torch.utils.data import DataLoader, Dataset

from spatial_vlm.config import load
from spatial_vlm.data import batch_plan, conversations, messages, pipeline, store
from spatial_vlm.data.batch_plan import BATCHINGS, padding
from spatial_vlm.data.conversations import Conversation, ConversationSource
from spatial_vlm.data.reading import ReadOptions
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.model.config import PRESETS
from spatial_vlm.processor.chat import ImageSize, Processor, Size, collate_batch, encode, measure
from spatial_vlm.processor.tokenizer import fit_config
from spatial_vlm.tasks import statements
from spatial_vlm.text import markdown_table

IMAGE_SIZES = [(480, 640)] * 25 + [(640, 480)] * 9 + [(427, 640)] * 6 + [(640, 427)] * 3
IMAGE_SIZES += [(375, 500)] * 3 + [(426, 640)] * 2 + [(500, 375), (612, 612)]
"""Height and width, with COCO's frequencies."""
OBJECTS, RELATIONS = ("cat", "dog", "bus", "cup", "person"), ("left of", "on", "touching", "behind")
ROW, BATCH = Size(1024, 1536), 4
BUCKETS = [Size(t, p) for p in (768, 1088, 1200, 1472) for t in (544, 608, 672, 736, 864)]


def draw(number: int) -> tuple[ImageSize, dict, Conversation]:
  """Returns an image's size, the record, and its chain of 200 to 450 tokens."""
  rng = np.random.default_rng(number)
  subj, obj = rng.choice(OBJECTS, 2, replace=False)
  relation = str(rng.choice(RELATIONS))
  caption, image = f"The {subj} is {relation} the {obj}.", f"{number:012d}.jpg"
  votes = {"vote_true_validator_id": "[1, 2]", "vote_false_validator_id": "[]"}
  record = {"image": image, "image_link": "", "caption": caption, "label": 1, "relation": relation}
  answer = " left" * int(rng.integers(200, 451))
  chain = Conversation(image, statements.question(caption, "chain"), answer)
  size = ImageSize(*IMAGE_SIZES[rng.integers(len(IMAGE_SIZES))])
  return size, record | {"annotator_id": 0} | votes, chain


def photograph(image_size: ImageSize, number: int) -> bytes:
  """Returns a JPEG of soft shapes with some noise: about 100 kB for 640×480."""
  rng, size = np.random.default_rng(number), (image_size.width, image_size.height)
  shapes = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, 3)
  noise = rng.normal(0, 8, (image_size.height, image_size.width, 1))
  pixels = np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def write(folder: Path, count: int) -> None:
  (folder / "images").mkdir()
  drawn = [draw(number) for number in range(count)]
  for number, (size, record, _) in enumerate(drawn):
    (folder / "images" / record["image"]).write_bytes(photograph(size, number))
  (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for _, r, _ in drawn))
  conversations.write(epath.Path(folder) / "chains.jsonl", (chain for _, _, chain in drawn))
  records = JsonlSource(folder / "train.jsonl", folder / "images")
  store.write_store(folder / "store", "train", records, store.Settings(4, 0, 0))


def patches_of_8b(tiny: Processor) -> Processor:
  """Returns a processor with Qwen3-VL-8B's patches and the tiny tokenizer; the texts have the 8B tokenizer's length."""
  images = dataclasses.replace(
    tiny.image_settings, patch_size=16, min_pixels=256**2, max_pixels=4096**2
  )
  videos = dataclasses.replace(tiny.video_settings, patch_size=16)
  return Processor(tiny.tokenizer, images, videos, fit_config(PRESETS["8b"], tiny.tokenizer))


class Encoded:
  """Encoded rows by number, for the loop and for torch's workers."""

  def __init__(self, source: ConversationSource, processor: Processor):
    self.source, self.processor = source, processor

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int):
    return encode(self.processor, self.source[index])


def collate(processor: Processor, rows: list, to: Callable = np.asarray) -> list:
  return [to(x) for x in jax.tree.leaves(collate_batch([[row] for row in rows], processor, ROW))]


def loop(rows: Encoded, order: list[int]) -> Iterable:
  for start in range(0, len(order), BATCH):
    yield collate(rows.processor, [rows[number] for number in order[start : start + BATCH]])


def readers(folder: Path, processor: Processor) -> dict[str, Callable[[], Iterable]]:
  """Returns functions that make one pass over the records in batches, by name."""
  locations = {"folder": folder / "images", "store": folder / "store" / "train.json"}
  found: dict[str, Callable[[], Iterable]] = {}
  source = {
    name: ConversationSource(folder / "chains.jsonl", location, 0.0)
    for name, location in locations.items()
  }
  rows = Encoded(source["folder"], processor)
  order = list(map(pipeline.prompt_order(0, len(rows)), range(len(rows))))
  found["plain loop, folder"] = functools.partial(loop, rows, order)
  make, pad = functools.partial(encode, processor), functools.partial(collate, processor)
  for location, workers in itertools.product(source, (0, 2, 4)):
    found[f"this pipeline, {location}, {workers} threads"] = functools.partial(
      pipeline.batches,
      source[location],
      make,
      pad,
      pipeline.EpochOrder(BATCH, seed=0, epochs=1),
      ReadOptions(workers),
    )
  tensors = functools.partial(collate, processor, to=torch.from_numpy)
  for workers in (0, 2):
    context = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    loader = DataLoader(
      cast(Dataset, rows), BATCH, sampler=order, num_workers=workers, collate_fn=tensors, **context
    )
    found[f"torch DataLoader, folder, {workers} processes"] = functools.partial(iter, loader)
  return found


def take_turns(readers: dict[str, Callable[[], Iterable]], count: int, rounds: int) -> np.ndarray:
  """Returns records per second [rounds, readers]; an extra first round starts workers and fills caches."""
  speeds = np.zeros((rounds + 1, len(readers)))
  for turn, (number, (name, start)) in itertools.product(
    range(rounds + 1), enumerate(readers.items())
  ):
    began = time.perf_counter()
    batches = sum(1 for _ in start())
    speeds[turn, number] = count / (time.perf_counter() - began)
    assert batches == count // BATCH, f"{name}: {batches} batches of {count} records"
    print(f"round {turn} of {rounds}: {name}: {speeds[turn, number]:.1f} records/s", flush=True)
  return speeds[1:]


def speed_table(names: Iterable[str], speeds: np.ndarray) -> str:
  ratios = speeds / speeds[:, :1]
  rows = [
    [name, median_and_range(s, "{:.1f}"), median_and_range(r, "{:.2f}")]
    for name, s, r in zip(names, speeds.T, ratios.T, strict=True)
  ]
  return markdown_table(["reader", "records/s", "of the plain loop's"], rows)


def median_and_range(values: np.ndarray, form: str) -> str:
  median, least, most = map(form.format, (np.median(values), values.min(), values.max()))
  return f"{median} [{least}–{most}]"


def padding_table(processor: Processor, count: int) -> str:
  """Returns a table of padded shares in one epoch of `count` conversations, in batches of 32 rows."""
  drawn = [draw(number) for number in range(count)]
  sizes = [
    measure(processor, messages.messages(size, c.question, c.answer)) for size, _, c in drawn
  ]
  (packed,) = [Size(*shape) for shape in load("configs/sft.py:8b", complete=False).data.shapes]
  rows = []
  for name, shapes in (("shuffled", [ROW]), ("bucketed", BUCKETS), ("packed", [packed])):
    plan = BATCHINGS[name](range(count), sizes, shapes, 32)
    shares = [f"{padded / slots:.1%}" for padded, slots in padding(plan, sizes).values()]
    rows.append([name, str(tuple(batch_plan.largest(shapes))), str(len(shapes)), *shares])
  return markdown_table(["batching", "largest row", "shapes", "of tokens", "of patches"], rows)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--records", type=int, default=96, help="a multiple of 4 (default 96)")
  parser.add_argument("--rounds", type=int, default=5, help="turns of each reader (default 5)")
  parser.add_argument(
    "--planned", type=int, default=4000, help="records of the plans whose padding is shown"
  )
  args = parser.parse_args()
  processor = patches_of_8b(Processor.from_folder("spatial_vlm/assets/tiny_base"))
  with tempfile.TemporaryDirectory() as name:
    write(Path(name), args.records)
    turns = readers(Path(name), processor)
    speeds = take_turns(turns, args.records, args.rounds)
  print(f"\n{speed_table(turns, speeds)}\n\n{padding_table(processor, args.planned)}")


if __name__ == "__main__":
  main()
