"""Files of benchmarks with their published schemas and the traps of the real ones; every row is made up."""

import base64
import csv
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))


def png(number=0, size=(32, 32)):
  """Returns a PNG of one color and some noise: more than 64 characters in base64, and another for each number."""
  pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
  pixels[: size[0] // 2] = COLORS[number % len(COLORS)]
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def encoded(number=0):
  return base64.b64encode(png(number)).decode()


def pixels(data):
  return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write_tsv(path, rows):
  """Writes rows as pandas' `to_csv(sep="\\t")` does: missing values are empty, fields are quoted where they must be."""
  columns = list(dict.fromkeys(name for row in rows for name in row))
  with path.open("w", newline="") as file:
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(c) is None else row[c] for c in columns] for row in rows])
  return path


def choice_row(index, answer="A", **fields):
  options = {"A": "the red half", "B": "the noisy half"}
  return {"index": index, "question": "Where is it?", **options, "answer": answer} | fields


def mmbench_rows():
  """Two questions of four and three options, each with all rotations; only the first copy holds the image."""
  rows = []
  for number, options in ((3, ["left", "right", "above", "below"]), (7, ["one", "two", "three"])):
    for turn in range(len(options)):
      turned = options[turn:] + options[:turn]
      named = dict(zip("ABCD", turned, strict=False))
      rows.append(
        {
          "index": number + turn * 1_000_000,
          "question": "How is it?\nLook twice.",
          "hint": 'There is a "hint".\tIt has a tab.' if number == 3 else None,
          **{letter: named.get(letter) for letter in "ABCD"},
          "answer": "ABCD"[turned.index(options[0])],
          "category": "spatial_relationship",
          "l2-category": "relation_reasoning",
          "image": encoded(number) if turn == 0 else number,
          "split": "dev",
        }
      )
  return rows


IMAGE = {"_type": "Image"}


def write_parquet(path, columns, features=None, row_group_size=2):
  """Writes columns as the library `datasets` does: its types stand in the metadata of the file."""
  struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
  arrays = {}
  for name, values in columns.items():
    feature = (features or {}).get(name)
    if feature == IMAGE:
      arrays[name] = pyarrow.array(values, struct)
    elif isinstance(feature, dict) and feature.get("feature") == IMAGE:
      arrays[name] = pyarrow.array(values, pyarrow.list_(struct))
    else:
      arrays[name] = pyarrow.array(values)
  table = pyarrow.table(arrays)
  if features is not None:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = table.replace_schema_metadata(metadata)
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
  return path


def cell(number, path=None):
  return {"bytes": png(number), "path": path}


def cvbench_columns(count=5):
  tasks = ["Count", "Relation", "Depth", "Distance", "Count"]
  return {
    "idx": list(range(count)),
    "type": ["2D", "2D", "3D", "3D", "2D"][:count],
    "task": tasks[:count],
    "image": [cell(n) for n in range(count)],
    "question": [f"Question {n}?" for n in range(count)],
    "choices": [
      ["2", "3", "1", "0", "4", "5"],
      ["left", "right"],
      ["a", "b"],
      ["a", "b"],
      ["0", "1"],
    ][:count],
    "answer": ["(F)", "(B)", "(A)", "(B)", "(A)"][:count],
    "source": ["ADE20K", "COCO", "Omni3D", "Omni3D", "COCO"][:count],
  }
