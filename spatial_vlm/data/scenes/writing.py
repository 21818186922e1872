"""Rendered scenes as files: records in VSR's format, boxes and PNG images."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from spatial_vlm.data.records import Record
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.render import Scene, render
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.processor.image import png
from spatial_vlm.progress import track
from spatial_vlm.remote import write_whole

_PNG_END = b"IEND\xaeB`\x82"


def write_split(source: SceneSource, folder: epath.Path) -> None:
  """Writes FOLDER/SPLIT.jsonl, FOLDER/SPLIT.boxes.jsonl and the images in FOLDER/images.

  The images are written first and the records last: a complete file of records means that everything else is there.
  """
  records = folder / f"{source.split}.jsonl"
  if _is_complete(records, len(source)):
    return
  (folder / "images").mkdir(parents=True, exist_ok=True)
  lines, boxes = [], []
  for index in track(range(len(source)), f"{source.split} scenes", len(source)):
    record, scene = source.describe(index)
    image = folder / "images" / record.image
    if not (image.exists() and image.read_bytes().endswith(_PNG_END)):
      image.write_bytes(png(Image.fromarray(render(scene, source.image_size))))
    lines.append(record.to_json())
    boxes.append({"image": record.image, "boxes": scene.boxes})
  _write_lines(folder / f"{source.split}.boxes.jsonl", boxes)
  _write_lines(records, lines)


def _is_complete(path: epath.Path, count: int) -> bool:
  if not path.exists():
    return False
  content = path.read_bytes()
  return content.count(b"\n") == count and (not content or content.endswith(b"\n"))


def _write_lines(path: epath.Path, entries: Iterable[dict[str, Any]]) -> None:
  path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def write_caption_pairs(source: SceneSource, count: int, folder: epath.Path) -> None:
  """Writes FOLDER/SPLIT_captions.jsonl: a true and a false statement about each of the first `count` images.

  The one is the scene's own; the other is about the same two objects (see `contrasting_record`).
  """
  path, lines = folder / f"{source.split}_captions.jsonl", []
  if path.exists():
    return
  for index in range(count):
    record, scene = source.describe(index)
    if other := contrasting_record(record, scene, (source.seed, index)):
      lines += [record.to_json(), other.to_json()]
  write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))


def contrasting_record(record: Record, scene: Scene, seed: tuple[int, int]) -> Record | None:
  """Returns a statement of the other label about the record's image and objects, in another relation or direction.

  It is drawn from all statements that the boxes clearly decide; None if there is none.
  """
  subject, other = record.subj or "", record.obj or ""
  found = [
    (relation, names)
    for relation in RELATIONS.values()
    for names in ((subject, other), (other, subject))
    if relation.holds(*(scene.boxes[name] for name in names)) is (not record.label)
  ]
  if not found:
    return None
  relation, (subject, other) = found[int(np.random.default_rng(seed).integers(len(found)))]
  return dataclasses.replace(
    record,
    caption=relation.caption(subject, other),
    label=1 - record.label,
    relation=relation.name,
    vote_true_validator_id=record.vote_false_validator_id,
    vote_false_validator_id=record.vote_true_validator_id,
    subj=subject,
    obj=other,
  )
