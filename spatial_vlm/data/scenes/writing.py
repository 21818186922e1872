"""Rendered scenes as files: records in VSR's format, boxes and PNG images."""

import json
from collections.abc import Iterable
from typing import Any

from etils import epath
from PIL import Image

from spatial_vlm.data.scenes.render import render
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.processor.image import png
from spatial_vlm.progress import track

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
