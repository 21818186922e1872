"""Prepares the tiny base before its training, and scores it afterwards.

python launch/tiny_base.py files FOLDER     tokenizer, processor files and config.json, no weights
spatial-vlm sft --config configs/sft.py:pretrain --config.checkpoint=FOLDER --workdir RUN
python launch/tiny_base.py score RUN/export  boxes on validation scenes, as JSON
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.scenes.source import SceneImage, SceneImageSource
from spatial_vlm.evaluation.boxes import iou, nearest_object
from spatial_vlm.inference.generation import inference_engine
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  AskedQuestion,
  Policy,
  decode_completions,
  encode_question,
  make_requests,
  prompt_format,
)
from spatial_vlm.model.config import PRESETS
from spatial_vlm.processor.tiny_tokenizer import train_tokenizer
from spatial_vlm.processor.tokenizer import fit_config, load_tokenizer
from spatial_vlm.sharding import make_mesh
from spatial_vlm.synthesis.scene_teacher import vocabulary_texts, where
from spatial_vlm.tasks.statements import LIST_OBJECTS

VOCABULARY = 512
SCENES, BATCH = 1024, 256


def files(folder: Path) -> None:
  train_tokenizer(vocabulary_texts(4000, seed=0), VOCABULARY, folder)
  tiny = fit_config(PRESETS["tiny"], load_tokenizer(folder))
  (folder / "config.json").write_text(json.dumps(tiny.to_huggingface(), indent=2) + "\n")
  print(f"{folder}: {tiny.text.vocab_size} tokens")


def score(folder: Path) -> None:
  """Prints the mean IoU of boxes in lists and answers to "where", and the share of boxes nearer to another object."""
  mesh = make_mesh({"data": -1})
  policy = load_policy(str(folder), mesh)
  source = SceneImageSource("validation", 0, SCENES, objects=(2, 3))
  images = [source[i] for i in range(SCENES)]
  names = [list(p.scene.boxes)[i % len(p.scene.boxes)] for i, p in enumerate(images)]
  listed = [
    answers.parse_boxes(text) for text in ask(policy, mesh, images, [LIST_OBJECTS] * SCENES)
  ]
  questions = [where(p.scene.boxes, name)[0] for p, name in zip(images, names, strict=True)]
  asked = [answers.parse_boxes(text) for text in ask(policy, mesh, images, questions)]
  everything = [list(p.scene.boxes) for p in images]
  result = {
    "scenes": SCENES,
    "list": compare(images, everything, listed),
    "list_complete": float(
      np.mean([set(b) == set(n) for b, n in zip(listed, everything, strict=True)])
    ),
    "where": compare(images, [[name] for name in names], asked),
  }
  print(json.dumps(result, indent=2))


def ask(
  policy: Policy, mesh: Mesh, images: Sequence[SceneImage], questions: Sequence[str]
) -> list[str]:
  asked = [
    AskedQuestion(question, image.image, encode_question(policy.processor, image.image, question))
    for image, question in zip(images, questions, strict=True)
  ]
  engine, greedy = inference_engine(policy, mesh), policy.sampling(64)
  format, key = prompt_format([(48, 64)], policy.dtype), jax.random.key(0)
  texts = []
  for start in range(0, len(asked), BATCH):
    rows, ids = asked[start : start + BATCH], range(start, start + BATCH)
    requests = make_requests(policy, mesh, rows, ids, [-1] * BATCH, format)
    texts += [a.text for a in decode_completions(policy, engine.generate(requests, key, greedy))]
  return texts


def compare(
  images: Sequence[SceneImage],
  names: Sequence[Sequence[str]],
  predicted: Sequence[dict[str, Box]],
) -> dict[str, float]:
  overlaps, misplaced = [], []
  for image, wanted, boxes in zip(images, names, predicted, strict=True):
    truth = image.scene.boxes
    for name in wanted:
      overlaps.append(iou(boxes[name], truth[name]) if name in boxes else 0.0)
      misplaced += [nearest_object(boxes[name], truth) != name] if name in boxes else []
  return {
    "iou_mean": float(np.mean(overlaps)),
    "iou_median": float(np.median(overlaps)),
    "nearer_to_another": float(np.mean(misplaced)) if misplaced else 0.0,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("action", choices=("files", "score"))
  parser.add_argument("folder", type=Path)
  args = parser.parse_args()
  {"files": files, "score": score}[args.action](args.folder)


if __name__ == "__main__":
  main()
