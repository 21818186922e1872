"""Measures the input pipeline beside a plain Python loop and a torch DataLoader, on the same records.

Draws photographs of COCO's sizes (JPEG) with statements and chains as long as VSR's, in a temporary folder. All readers
make the same batches of the same rows: decode, resize, cut into patches, encode the text, pad. They take turns; the
table gives the median over the rounds and, in brackets, the least and the most. Padding is that of larger plans.

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

import jax
import numpy as np
import PIL.Image
import torch
from torch.utils.data import DataLoader

from spatial_vlm.config import read_preset
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

EXTENTS = [(480, 640)] * 25 + [(640, 480)] * 9 + [(427, 640)] * 6 + [(640, 427)] * 3
EXTENTS += [(375, 500)] * 3 + [(426, 640)] * 2 + [(500, 375), (612, 612)]
"""Height and width, as often as in COCO."""
OBJECTS, RELATIONS = ("cat", "dog", "bus", "cup", "person"), ("left of", "on", "touching", "behind")
ROW, BATCH = Size(1024, 1536), 4
BUCKETS = [Size(t, p) for p in (768, 1088, 1200, 1472) for t in (544, 608, 672, 736, 864)]


def draw(number: int) -> tuple[ImageSize, dict, Conversation]:
  """A picture's size, the record, and its chain of 200 to 450 tokens."""
  rng = np.random.default_rng(number)
  subj, obj = rng.choice(OBJECTS, 2, replace=False)
  relation = str(rng.choice(RELATIONS))
  caption, image = f"The {subj} is {relation} the {obj}.", f"{number:012d}.jpg"
  votes = {"vote_true_validator_id": "[1, 2]", "vote_false_validator_id": "[]"}
  record = {"image": image, "image_link": "", "caption": caption, "label": 1, "relation": relation}
  answer = " left" * int(rng.integers(200, 451))
  chain = Conversation(image, statements.question(caption, "chain"), answer)
  extent = ImageSize(*EXTENTS[rng.integers(len(EXTENTS))])
  return extent, record | {"annotator_id": 0} | votes, chain


def photograph(extent: ImageSize, number: int) -> bytes:
  """JPEG of soft shapes with some noise: about 100 kB for 640×480."""
  rng, size = np.random.default_rng(number), (extent.width, extent.height)
  shapes = PIL.Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(size, 3)
  noise = rng.normal(0, 8, (extent.height, extent.width, 1))
  pixels = np.clip(np.asarray(shapes) + noise, 0, 255).astype(np.uint8)
  buffer = io.BytesIO()
  PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
  return buffer.getvalue()


def write(folder: Path, count: int) -> None:
  (folder / "images").mkdir()
  drawn = [draw(number) for number in range(count)]
  for number, (extent, record, _) in enumerate(drawn):
    (folder / "images" / record["image"]).write_bytes(photograph(extent, number))
  (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for _, r, _ in drawn))
  conversations.write(folder / "chains.jsonl", (chain for _, _, chain in drawn))
  records = JsonlSource(folder / "train.jsonl", folder / "images")
  store.write_store(folder / "store", "train", records, store.Settings(4, 0, 0))


def patches_of_8b(tiny: Processor) -> Processor:
  """Qwen3-VL-8B's patches with the tokenizer that ships; the texts are made as long as with its own."""
  images = dataclasses.replace(
    tiny.image_settings, patch_size=16, min_pixels=256**2, max_pixels=4096**2
  )
  videos = dataclasses.replace(tiny.video_settings, patch_size=16)
  return Processor(tiny.tokenizer, images, videos, fit_config(PRESETS["8b"], tiny.tokenizer))


class Encoded:
  """The rows, for the loop and for torch's workers."""

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
  """Name -> one pass over the records, in batches."""
  places = {"folder": folder / "images", "store": folder / "store" / "train.json"}
  found: dict[str, Callable[[], Iterable]] = {}
  source = {
    name: ConversationSource(folder / "chains.jsonl", place, 0.0) for name, place in places.items()
  }
  rows = Encoded(source["folder"], processor)
  order = list(map(pipeline.prompt_order(0, len(rows)), range(len(rows))))
  found["plain loop, folder"] = functools.partial(loop, rows, order)
  make, pad = functools.partial(encode, processor), functools.partial(collate, processor)
  for place, workers in itertools.product(source, (0, 2, 4)):
    found[f"this pipeline, {place}, {workers} threads"] = functools.partial(
      pipeline.batches,
      source[place],
      make,
      pad,
      pipeline.EpochOrder(BATCH, seed=0, epochs=1),
      ReadOptions(workers),
    )
  tensors = functools.partial(collate, processor, to=torch.from_numpy)
  for workers in (0, 2):
    context = {"multiprocessing_context": "spawn", "persistent_workers": True} if workers else {}
    loader = DataLoader(
      rows, BATCH, sampler=order, num_workers=workers, collate_fn=tensors, **context
    )
    found[f"torch DataLoader, folder, {workers} processes"] = functools.partial(iter, loader)
  return found


def take_turns(readers: dict[str, Callable[[], Iterable]], count: int, rounds: int) -> np.ndarray:
  """Records per second, [rounds, readers]; a round before them all starts workers and fills caches."""
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
  """Shares of padded slots in one epoch of so many conversations, in batches of 32 rows."""
  drawn = [draw(number) for number in range(count)]
  sizes = [
    measure(processor, messages.messages(extent, c.question, c.answer)) for extent, _, c in drawn
  ]
  (packed,) = [Size(*shape) for shape in read_preset("configs/sft.py:8b").data.shapes]
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
