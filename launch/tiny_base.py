"""Makes the tiny base: its tokenizer and architecture before training, its score afterwards.

python launch/tiny_base.py files FOLDER     tokenizer, processor files and config.json, no weights
spatial-vlm sft --config configs/sft.py:pretrain --config.checkpoint=FOLDER --workdir RUN
python launch/tiny_base.py score RUN/export  boxes on validation scenes, as JSON
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spatial_vlm import answers
from spatial_vlm.answers import Box
from spatial_vlm.data.scenes.source import SceneImage, SceneImageSource
from spatial_vlm.evaluation.boxes import iou, nearest_object
from spatial_vlm.inference.generation import greedy
from spatial_vlm.inference.loading import load_policy
from spatial_vlm.inference.policy import (
  Policy,
  PromptShape,
  collate,
  decode_completions,
  encode_question,
)
from spatial_vlm.model.config import PRESETS
from spatial_vlm.processor.tiny_tokenizer import train_tokenizer
from spatial_vlm.processor.tokenizer import fit_config, load_tokenizer
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
  """Mean IoU of the boxes in lists and in answers to "where", and the share of boxes nearer to another object."""
  policy = load_policy(str(folder))
  source = SceneImageSource("validation", 0, SCENES, objects=(2, 3))
  pictures = [source[i] for i in range(SCENES)]
  names = [list(p.scene.boxes)[i % len(p.scene.boxes)] for i, p in enumerate(pictures)]
  listed = [answers.parse_boxes(text) for text in ask(policy, pictures, [LIST_OBJECTS] * SCENES)]
  questions = [where(p.scene, name)[0] for p, name in zip(pictures, names, strict=True)]
  asked = [answers.parse_boxes(text) for text in ask(policy, pictures, questions)]
  everything = [list(p.scene.boxes) for p in pictures]
  result = {
    "scenes": SCENES,
    "list": compare(pictures, everything, listed),
    "list_complete": float(
      np.mean([set(b) == set(n) for b, n in zip(listed, everything, strict=True)])
    ),
    "where": compare(pictures, [[name] for name in names], asked),
  }
  print(json.dumps(result, indent=2))


def ask(policy: Policy, pictures: Sequence[SceneImage], questions: Sequence[str]) -> list[str]:
  rows = [
    encode_question(policy.processor, p.image, q) for p, q in zip(pictures, questions, strict=True)
  ]
  texts = []
  for start in range(0, len(rows), BATCH):
    ids = range(start, start + BATCH)
    prompts = collate(
      policy.processor, rows[start : start + BATCH], ids, [-1] * BATCH, PromptShape(48, 64)
    )
    completions = greedy(policy, policy.params, prompts, 64)
    texts += [answer.text for answer in decode_completions(policy, completions)]
  return texts


def compare(
  pictures: Sequence[SceneImage],
  names: Sequence[Sequence[str]],
  predicted: Sequence[dict[str, Box]],
) -> dict[str, float]:
  overlaps, misplaced = [], []
  for picture, wanted, boxes in zip(pictures, names, predicted, strict=True):
    truth = picture.scene.boxes
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
