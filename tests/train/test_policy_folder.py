"""The files of an exported policy besides its weights."""

import json
import logging

import numpy as np
import PIL.Image
import pytest
import transformers
import yaml
from etils import epath

from spatial_vlm import answers
from spatial_vlm.config import PACKAGE_FOLDER
from spatial_vlm.data.scenes.source import SceneImageSource
from spatial_vlm.huggingface.folder import read_model_config
from spatial_vlm.huggingface.model_card import Card, Knowledge, model_card, read_knowledge
from spatial_vlm.processor.tokenizer import SpecialIds, load_tokenizer
from spatial_vlm.train.policy_folder import card_field, write_policy_files
from spatial_vlm.train.policy_knowledge import taught_by_sft, training_knowledge


@pytest.fixture(scope="module")
def dapo(scenes_folder):
  return {
    "algorithm": "dapo",
    "checkpoint": "/secret/place/base",
    "task": "scenes",
    "behaviors": "",
    "data.records": str(scenes_folder / "train.jsonl"),
    "data.images": str(scenes_folder / "images"),
  }


@pytest.fixture(scope="module")
def sft(scenes_folder):
  return {
    "algorithm": "sft",
    "checkpoint": "base",
    "task": "vsr",
    "data.pretrain.scenes": (),
    "data.conversations": str(scenes_folder / "chains.jsonl"),
    "data.images": str(scenes_folder / "images"),
    "data.mix": ((str(scenes_folder / "direct.jsonl"), "", 1.0),),
  }


def test_a_policy_knows_what_its_trainings_taught(nano, sft, dapo, tmp_path):
  first, second = epath.Path(tmp_path / "sft"), epath.Path(tmp_path / "dapo")
  write_policy_files(first, epath.Path(nano), sft)
  (first / "config.json").write_bytes((nano / "config.json").read_bytes())
  write_policy_files(second, first, dapo | {"behaviors": "index"})
  known = read_knowledge(second)
  assert known.tasks == ["vsr", "scenes"]
  assert sorted(known.forms) == ["chain", "direct", "short"]
  assert known.image_height == known.image_width == [64, 64]
  assert [stage["algorithm"] for stage in known.stages] == ["sft", "dapo"]
  assert [stage["checkpoint"] for stage in known.stages] == ["base", "base"]
  assert known.stages[0]["data"] == "chains.jsonl, direct.jsonl"
  assert (
    "secret" not in (second / "README.md").read_text() + (second / "spatial_vlm.json").read_text()
  )
  assert sorted(read_knowledge(first).forms) == ["chain", "direct"]


@pytest.mark.parametrize(
  ("task", "question", "expected"),
  [
    (
      "vsr",
      "It is so. True? Think in four steps: Summary, Caption, Reasoning, Conclusion.",
      "chain",
    ),
    ("vsr", "List the objects.", None),
    (
      "realworldqa",
      "What is it?\nThink in four steps: Summary, Caption, Reasoning, Conclusion.",
      "chain",
    ),
    ("realworldqa", "What is it?", None),
  ],
)
def test_only_what_a_run_was_about_counts_as_taught(sft, tmp_path, task, question, expected):
  """Benchmarks share words with it, and a short answer's question has none."""
  row = {"image": "0.png", "question": question, "answer": "Yes."}
  (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
  settings = {"task": task, "data.conversations": str(tmp_path / "c.jsonl"), "data.mix": ()}
  found = taught_by_sft(sft | settings)
  known = ([task], [expected]) if expected else ([], [])
  assert (list(found.tasks), list(found.forms)) == known


def test_data_that_is_gone_is_reported(nano, dapo, caplog):
  with caplog.at_level(logging.WARNING):
    known = training_knowledge(dapo | {"data.records": "/no/such.jsonl"}, epath.Path(nano))
  assert known.image_height is None and known.stages[0]["data"] == "not known"
  assert "/no/such.jsonl" in caplog.text


def test_generation_settings_of_the_base_are_kept(nano, dapo, tmp_path):
  """As Qwen's, which names two ends; a base that names another end gets the end of a turn first."""
  source, exported = epath.Path(tmp_path / "source"), epath.Path(tmp_path / "exported")
  source.mkdir()
  for path in nano.iterdir():
    if path.suffix in (".json", ".jinja"):
      (source / path.name).write_bytes(path.read_bytes())
  eos = SpecialIds.of(load_tokenizer(source), read_model_config(source)).eos
  for given, expected in (([eos, 3], [eos, 3]), (3, [eos, 3])):
    settings = {"eos_token_id": given, "pad_token_id": 3, "top_k": 20, "do_sample": True}
    (source / "generation_config.json").write_text(json.dumps(settings))
    write_policy_files(exported, source, dapo)
    found = json.loads((exported / "generation_config.json").read_text())
    assert found == settings | {"eos_token_id": expected}


@pytest.mark.parametrize("config_alone", [False, True])
def test_generate_ends_at_the_end_of_a_turn(dapo, tmp_path, config_alone):
  """Transformers stops where this package stops, by generation_config.json or, without it, by config.json."""
  base, exported = epath.Path(PACKAGE_FOLDER / "assets" / "tiny_base"), epath.Path(tmp_path)
  write_policy_files(exported, base, dapo)
  for name in ("config.json", "model.safetensors"):
    (exported / name).write_bytes((base / name).read_bytes())
  if config_alone:
    (exported / "generation_config.json").unlink()
  model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(exported)
  reader = transformers.AutoProcessor.from_pretrained(exported, local_files_only=True)
  reader.image_processor = transformers.AutoImageProcessor.from_pretrained(exported, backend="pil")
  image = SceneImageSource("validation", 0, 2, objects=(2, 3))[0].image
  content = [{"type": "image"}, {"type": "text", "text": "List the objects."}]
  turn = [{"role": "user", "content": content}]
  text = reader.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
  inputs = reader(text=[text], images=[PIL.Image.fromarray(np.asarray(image))], return_tensors="pt")
  length = inputs["input_ids"].shape[1]
  written = model.generate(**inputs, max_new_tokens=96)[0, length:].tolist()
  eos = reader.tokenizer.convert_tokens_to_ids("<|im_end|>")
  assert written.index(eos) == len(written) - 1 < 95
  assert answers.parse_boxes(reader.tokenizer.decode(written[:-1]))
  asked = reader.apply_chat_template(turn, tokenize=False, form="chain")
  assert "List the objects. True? Think in four steps" in asked


def test_license_and_base_are_those_of_the_source_unless_they_are_given(nano, dapo, tmp_path):
  source = epath.Path(tmp_path / "source")
  given = {"license": "apache-2.0", "base_model": "Qwen/Qwen3-VL-8B"}
  write_policy_files(source, epath.Path(nano), dapo, **given)
  (source / "config.json").write_bytes((nano / "config.json").read_bytes())
  assert (
    card_field(source, "license") == "apache-2.0" and card_field(epath.Path(nano), "license") == ""
  )
  write_policy_files(epath.Path(tmp_path / "next"), source, dapo)
  for field, value in given.items():
    assert card_field(epath.Path(tmp_path / "next"), field) == value


def test_names_in_a_card_are_text():
  stage = {"algorithm": "sft", "checkpoint": "b", "data": "<script>|`x`"}
  knowledge = Knowledge([], [], None, None, 8, [stage])
  text = model_card(knowledge, Card("[b](http://evil)", "", "", ""))
  assert "<script>" not in text and "[b](" not in text
  assert "sizes not known" in text and "license" not in yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tasks": []}', "\x00"])
def test_other_files_of_that_name_are_no_knowledge(tmp_path, content):
  (tmp_path / "spatial_vlm.json").write_text(content)
  assert read_knowledge(epath.Path(tmp_path)) is None
