"""Folders of others with odd values: one error that names the file, in bounded time and memory."""

import json
import random
import shutil

import pytest
from json_changes import places, replaced

from spatial_vlm.config import PACKAGE_FOLDER
from spatial_vlm.huggingface.encoder_folder import open_encoder, read_encoder_config
from spatial_vlm.huggingface.weights import open_checkpoint
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.encoder_tokenizer import load_encoder_tokenizer
from spatial_vlm.processor.image import ImageSettings
from spatial_vlm.reuse.embedding.encoder_embedder import read_min_similarity

TINY_BASE = PACKAGE_FOLDER / "assets" / "tiny_base"
ODD = (None, [], {}, -1, 0, float("inf"), float("nan"), "x", True, 10**12, 10**30, [[]], "\ud800")
FILES = {
  "config.json": 40,
  "preprocessor_config.json": 30,
  "video_preprocessor_config.json": 20,
  "tokenizer_config.json": 8,
  "tokenizer.json": 4,
}
"""File → number of changes that are tried."""


TINY_ENCODER = PACKAGE_FOLDER / "assets" / "tiny_encoder"
ENCODER_FILES = {"config.json": 30, "tokenizer.json": 4, "similarity.json": 4}


def load_encoder(folder):
  config = read_encoder_config(folder)
  load_encoder_tokenizer(folder, config)
  read_min_similarity(folder)
  return open_encoder(folder, config)


def load(folder):
  processor = Processor.from_folder(folder)
  return open_checkpoint(folder, processor.model_config)


@pytest.mark.parametrize(
  ("read", "folder", "file", "changes"),
  [
    *((load, TINY_BASE, *each) for each in FILES.items()),
    *((load_encoder, TINY_ENCODER, *each) for each in ENCODER_FILES.items()),
  ],
)
def test_odd_values_are_one_error_or_none(tmp_path, read, folder, file, changes):
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  written = json.loads((folder / file).read_text())
  cases = [(place, new) for place in places(written, most=12) for new in ODD]
  refused = 0
  for place, new in random.Random(0).sample(cases, changes):
    (tmp_path / file).write_text(json.dumps(replaced(written, place, new)))
    try:
      read(tmp_path)
    except ValueError as error:  # any other exception fails the test
      refused += 1
      assert str(tmp_path) in str(error), (place, new)
      assert len(str(error)) < 1500
  assert refused >= changes / 4


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("vocab_size", 10**12, "vocab_size is 1000000000000; it must be a whole number from 1 to"),
    ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000; .* from 1 to 1000"),
    ("rms_norm_eps", -1.0, "rms_norm_eps is -1.0; it must be a positive number"),
  ],
)
def test_sizes_that_no_model_has_cost_nothing(tmp_path, name, value, message):
  shutil.copytree(TINY_BASE, tmp_path, dirs_exist_ok=True)
  config = json.loads((TINY_BASE / "config.json").read_text())
  config["text_config"][name] = value
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f"config.json: {message}"):
    load(tmp_path)


@pytest.mark.parametrize(
  "settings",
  [
    {"image_std": [0.5, 0, 0.5]},
    {"image_std": [0.5, -0.5, 0.5]},
    {"image_std": [0.5, 1e-320, 0.5]},
    {"image_std": [True, 1, 1]},
    {"image_mean": [0.5, 1e39, 0.5]},
    {"image_mean": [0.5, 0.5]},
    {"image_mean": "0.5"},
    {"image_mean": 0.5},
    {"rescale_factor": 0},
    {"rescale_factor": -1 / 255},
    {"do_rescale": False},
  ],
)
def test_odd_normalisations_are_refused(tmp_path, settings):
  file = tmp_path / "preprocessor_config.json"
  file.write_text(json.dumps(json.loads((TINY_BASE / file.name).read_text()) | settings))
  (name,) = settings
  with pytest.raises(ValueError, match=rf"preprocessor_config.json: .*({name} is|not iterable)"):
    ImageSettings.from_folder(tmp_path)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a": {"shape": [1e999]}}', b"null", b"[1]"])
def test_a_lying_header_of_weights_is_one_error(tmp_path, header):
  shutil.copytree(TINY_BASE, tmp_path, dirs_exist_ok=True)
  data = len(header).to_bytes(8, "little") + header
  (tmp_path / "model.safetensors").write_bytes(data)
  with pytest.raises(ValueError, match="model.safetensors is damaged .*copy it again"):
    load(tmp_path)
