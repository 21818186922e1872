"""Makes the tokenizer, processor files and architecture of the tiny base, without weights.

  python launch/tiny_base.py FOLDER

`spatial-vlm sft --config configs/sft.py:pretrain --config.checkpoint=FOLDER` then trains the weights.
"""

import argparse
import json
from pathlib import Path

from spatial_vlm.model.config import PRESETS
from spatial_vlm.processor.tiny_tokenizer import train_tokenizer
from spatial_vlm.processor.tokenizer import fit_config, load_tokenizer
from spatial_vlm.synthesis.scene_teacher import vocabulary_texts

VOCABULARY = 512


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("folder", type=Path)
  folder = parser.parse_args().folder
  train_tokenizer(vocabulary_texts(4000, seed=0), VOCABULARY, folder)
  tiny = fit_config(PRESETS["tiny"], load_tokenizer(folder))
  (folder / "config.json").write_text(json.dumps(tiny.to_huggingface(), indent=2) + "\n")
  print(f"{folder}: {tiny.text.vocab_size} tokens")


if __name__ == "__main__":
  main()
