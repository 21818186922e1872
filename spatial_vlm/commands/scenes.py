"""Make pictures of simple scenes with true and false statements about them, in VSR's format.

Writes, for each of train, validation and test, WORKDIR/SPLIT.jsonl (one VSR record a line), SPLIT.boxes.jsonl
(where the objects are) and the pictures to WORKDIR/images; chains.jsonl and direct.jsonl, the teacher's answers
to training statements that `sft` reads; and contact_sheet.png to look at. Interrupted, it goes on where it was.

  spatial-vlm scenes --workdir runs/scenes
  spatial-vlm scenes --config.counts.train=20000 --config.seed=7 --workdir runs/more_scenes
"""

import json
from collections.abc import Iterable
from typing import Any

from etils import epath
from PIL import Image
from tqdm import tqdm

from spatial_vlm import answers
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.contact_sheet import contact_sheet
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.scenes.render import render
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.processor.image import png
from spatial_vlm.synthesis import scene_teacher
from spatial_vlm.synthesis.draft import chain
from spatial_vlm.tasks import statements

_PNG_END = b"IEND\xaeB`\x82"


def run(config: Config, workdir: epath.Path, args) -> None:
  sources = open_sources(config)
  snapshot(config, workdir)
  (workdir / "images").mkdir(parents=True, exist_ok=True)
  for source in sources.values():
    write_split(source, workdir)
  write_conversations(sources["train"], config.chains, workdir)
  sheet = [sources["train"][index] for index in range(config.sheet)]
  (workdir / "contact_sheet.png").write_bytes(png(contact_sheet(sheet)))
  print(f"records, images and contact_sheet.png are in {workdir}")


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work together."""
  open_sources(config)


def open_sources(config: Config) -> dict[str, SceneSource]:
  """Sources of the three splits; raises UsageError for settings that cannot work together."""
  if len(config.objects) != 2 or config.seed < 0 or config.image_size < 8:
    raise UsageError(
      f"objects is {config.objects}, seed is {config.seed} and image_size is {config.image_size}; give the least "
      "and the most objects, a seed from 0 on, and at least 8 pixels"
    )
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
      f"{most} training examples are asked for by chains or sheet, but counts.train is {config.counts.train};"
      " lower the one or raise the other"
    )
  return sources


def write_split(source: SceneSource, workdir: epath.Path) -> None:
  """Pictures first, records last: a file of records that is whole says that all else is there."""
  records = workdir / f"{source.split}.jsonl"
  if _whole(records, len(source)):
    return
  lines, boxes = [], []
  for index in tqdm(range(len(source)), desc=f"{source.split} scenes", dynamic_ncols=True):
    record, scene = source.describe(index)
    image = workdir / "images" / record.image
    if not (image.exists() and image.read_bytes().endswith(_PNG_END)):
      image.write_bytes(png(Image.fromarray(render(scene, source.image_size))))
    lines.append(record.to_json())
    boxes.append({"image": record.image, "boxes": scene.boxes})
  _write_lines(workdir / f"{source.split}.boxes.jsonl", boxes)
  _write_lines(records, lines)


def write_conversations(source: SceneSource, count: int, workdir: epath.Path) -> None:
  """The teacher's chains, and bare verdicts, for the first `count` examples."""
  chains, direct = [], []
  for index in tqdm(range(count), desc="chains", dynamic_ncols=True):
    record, scene = source.describe(index)
    draft = scene_teacher.draft(record, scene.boxes)
    for form, rows, answer in (
      ("chain", chains, chain(draft)),
      ("direct", direct, answers.render_direct(record.label)),
    ):
      rows.append(Conversation(record.image, statements.question(record.caption, form), answer))
  conversations.write(workdir / "chains.jsonl", chains)
  conversations.write(workdir / "direct.jsonl", direct)


def _whole(path: epath.Path, count: int) -> bool:
  if not path.exists():
    return False
  content = path.read_bytes()
  return content.count(b"\n") == count and (not content or content.endswith(b"\n"))


def _write_lines(path: epath.Path, entries: Iterable[dict[str, Any]]) -> None:
  path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


COMMAND = Command("scenes", run, check=check)
