"""Two checkpoint folders, the tiny one and one that splits text as Qwen does, and real photographs."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import skimage.data
import sklearn.datasets
import tokenizers
import transformers

from spatial_vlm.model.config import PRESETS
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tiny_tokenizer import SPECIAL_TOKENS, train_tokenizer
from spatial_vlm.processor.tokenizer import fit_config, load_tokenizer
from spatial_vlm.processor.video import Clip

TEXTS = [
  "Summary: find the red circle and the blue square.\nCaption: red circle [120, 340, 260, 480], "
  "blue square [0, 20, 400, 600]\nReasoning: red circle x=160 < blue square x=200\nConclusion: Yes.",
  "Applying 'behavior_left_of': red circle x=100 < blue square x=200\nConclusion: No.",
  "gap=125, 1375, gap=125",
  "Is the red circle left of the blue square?\n\nAnswer Yes or No.\n\n  \nYes.",
]


def _write_config(folder: Path):
  config = fit_config(PRESETS["tiny"], load_tokenizer(folder))
  (folder / "config.json").write_text(json.dumps(config.to_huggingface()))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp("tiny")
  train_tokenizer(TEXTS, 512, folder)
  _write_config(folder)
  return folder


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory, tiny_folder) -> Path:
  """Qwen2Tokenizer (its split, NFC, merges, among them that of two line ends) with tokens like <think>."""
  folder = tmp_path_factory.mktemp("qwen")
  empty = transformers.Qwen2Tokenizer()
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
  bpe.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400, initial_alphabet=alphabet, show_progress=False
  )
  bpe.train_from_iterator([*TEXTS * 5, "a\n\nb" * 99], trainer)
  model = json.loads(bpe.to_str())["model"]
  assert "ĊĊ" in model["vocab"]  # a turn's header merges with line ends that follow it
  tokenizer = transformers.Qwen2Tokenizer(
    vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], eos_token="<|im_end|>"
  )
  tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
  tokenizer.add_tokens(["<think>", "</think>"])
  tokenizer.chat_template = load_tokenizer(tiny_folder).chat_template
  tokenizer.save_pretrained(folder)
  for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
    (folder / name).write_bytes((tiny_folder / name).read_bytes())
  _write_config(folder)
  return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> Processor:
  return Processor.from_folder(tiny_folder)


@pytest.fixture(scope="session", params=["tiny", "qwen"])
def folder(request, tiny_folder, qwen_folder) -> Path:
  return {"tiny": tiny_folder, "qwen": qwen_folder}[request.param]


@pytest.fixture(scope="session")
def processor(folder) -> Processor:
  return Processor.from_folder(folder)


@pytest.fixture(scope="session")
def reference(folder):
  """Hugging Face's whole processor, with the PIL-based image processor."""
  processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
  processor.image_processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
  return processor


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
  china, flower = sklearn.datasets.load_sample_images().images
  images = {"china": china, "flower": flower}
  for name in ("astronaut", "coffee", "rocket", "chelsea"):
    images[name] = getattr(skimage.data, name)()
  return images


@pytest.fixture
def noise():
  """Textured images of any size, RGB."""

  def make(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    return PIL.Image.fromarray(
      np.random.default_rng((seed, height, width)).integers(0, 256, (height, width, 3), np.uint8)
    )

  return make


@pytest.fixture
def clip():
  """Textured videos of any size."""

  def make(frames: int, fps: float, height: int, width: int) -> Clip:
    shape = (frames, height, width, 3)
    return Clip(np.random.default_rng(shape).integers(0, 256, shape, np.uint8), fps)

  return make
