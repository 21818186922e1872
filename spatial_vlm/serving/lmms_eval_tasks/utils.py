"""Functions of the task in spatial_vlm_scenes.yaml, which lmms-eval calls."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from spatial_vlm.answer_extraction import extract_word

IMAGES = "SPATIAL_VLM_IMAGES"
"""Environment variable that names the folder of the images."""


def doc_to_visual(record: Mapping[str, Any]) -> list[PIL.Image.Image]:
  """Returns the image of a record; ValueError for a name that is a path."""
  folder, name = Path(os.environ.get(IMAGES, "runs/scenes/images")), record["image"]
  if Path(name).name != name:
    raise ValueError(f"the image of a record is {name!r}; give the name of a file in {folder}")
  with PIL.Image.open(folder / name) as image:
    return [image.convert("RGB")]


def doc_to_text(record: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, str]) -> str:
  """Returns the question about a record."""
  return record["caption"] + lmms_eval_specific_kwargs["post_prompt"]


def process_results(record: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
  """Returns the scores of one answer, whose conclusion counts; an answer without a verdict is wrong."""
  verdict = extract_word(results[0])
  return {"accuracy": float(verdict == record["label"]), "stated": float(verdict >= 0)}


def mean(scores: Sequence[float]) -> float:
  """Returns the mean of a metric."""
  return sum(scores) / len(scores)
