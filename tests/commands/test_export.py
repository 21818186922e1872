"""Checkpoints of runs that are not finished, as Hugging Face folders."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
import yaml
from checkpoint_folders import read_checkpoint
from orbax.checkpoint import CheckpointManager
from safetensors.numpy import load_file

from spatial_vlm import config
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.export import read_results
from spatial_vlm.inference.questions import question_words
from spatial_vlm.processor.chat import Processor
from spatial_vlm.tasks import TASKS


@pytest.mark.parametrize(
  ("name", "newest"),
  # After at most four rounds of sampling, the fifth event of dapo follows an update.
  [("sft", 3), pytest.param("dapo", 5, marks=pytest.mark.slow)],
)
def test_exports_the_newest_checkpoint_of_a_stopped_run(
  name, newest, run, sft_changes, dapo_changes, before_saving, tmp_path, capsys
):
  changes = {"sft": sft_changes, "dapo": dapo_changes}[name]
  with before_saving(newest + 1):
    run(name, tmp_path / "run", changes)
  done = run("export", tmp_path / "exported", {"run": tmp_path / "run"})
  assert done.code == 0 and not config.unread(done.configs[0])
  assert f"checkpoint {newest} of" in capsys.readouterr().out
  stored = load_file(tmp_path / "exported" / "model.safetensors")
  model, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
    tmp_path / "exported", output_loading_info=True
  )
  assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  loaded = model.state_dict()
  assert stored.keys() <= loaded.keys()
  for tensor, value in stored.items():
    np.testing.assert_array_equal(loaded[tensor].numpy(), value)
  # The trained weights, not the initial ones, and the same as the run itself exports.
  before = load_file(changes["checkpoint"] / "model.safetensors")
  assert any(not np.array_equal(before[tensor], value) for tensor, value in stored.items())
  if name == "sft":
    assert run(name, tmp_path / "run", {**changes}).code == 0
    assert run("export", tmp_path / "again", {"run": tmp_path / "run"}).code == 0
    final = load_file(tmp_path / "run" / "export" / "model.safetensors")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(np.array_equal(final[tensor], again[tensor]) for tensor in final)


def check_that_it_can_be_served(folder, algorithm):
  """Other programs find the end of a turn, the questions and what the policy knows."""
  processor = Processor.from_folder(folder)
  special = processor.special
  generation = transformers.GenerationConfig.from_pretrained(folder)
  assert generation.eos_token_id == [special.eos] and generation.pad_token_id == special.pad
  description = json.loads((folder / "config.json").read_text())["text_config"]
  assert (description["eos_token_id"], description["pad_token_id"]) == (special.eos, special.pad)
  rope = description["rope_parameters"]
  assert description["rope_scaling"] | {"rope_theta": description["rope_theta"]} == rope
  known = json.loads((folder / "spatial_vlm.json").read_text())
  assert known["tasks"][0] in TASKS and known["forms"] == ["chain"]
  assert known["image_height"] == known["image_width"] == [64, 64]
  assert known["vocabulary_size"] == len(processor.tokenizer)
  assert [stage["algorithm"] for stage in known["stages"]][-1] == algorithm
  metadata = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
  assert metadata["pipeline_tag"] == "image-text-to-text" and algorithm in metadata["tags"]
  template = processor.tokenizer.chat_template
  (words,) = [question_words(TASKS[known["tasks"][0]])["chain"]]
  turn = [{"role": "user", "content": "It is so."}]
  text = processor.tokenizer.apply_chat_template(turn, form="chain", tokenize=False)
  assert "It is so.".join(words) in text and template


def write_results(workdir, **changes):
  """Writes what `evaluate` leaves in its workdir."""
  scores = {"accuracy": 0.75, "ci_low": 0.7, "ci_high": 0.8, "parse_rate": 1.0, "box_iou": None}
  row = {"method": "chain", "n": 64, **scores, "seconds_per_answer": 0.5}
  row |= {"generated_tokens_mean": 101.5, "total_tokens_mean": 150.0}
  (workdir / "results.json").write_text(json.dumps({"rows": [row], "split": "test"}))
  settings = {"task": "scenes", "template": "project", "prompt": "plain", "method": "chain"}
  settings |= {"control": "", **changes}
  (workdir / "config.json").write_text(json.dumps({"config": settings}))


def test_the_card_holds_results_and_license(run, sft_changes, before_saving, tmp_path, refused):
  with before_saving(2):
    run("sft", tmp_path / "run", sft_changes)
  write_results(tmp_path, checkpoint=str(tmp_path / "run" / "export"))
  card = {"run": tmp_path / "run", "results": tmp_path, "license": "apache-2.0"}
  card |= {"base_model": "Qwen/Qwen3-VL-8B-Instruct"}
  assert run("export", tmp_path / "exported", card).code == 0
  check_that_it_can_be_served(tmp_path / "exported", "sft")
  text = (tmp_path / "exported" / "README.md").read_text()
  metadata = yaml.safe_load(text.split("---\n")[1])
  assert metadata["base_model"] == "Qwen/Qwen3-VL-8B-Instruct"
  assert "task scenes, template project, prompt plain, split test, records 64.\n\n| method" in text
  assert "license: apache-2.0" in text and "75.0 % (70.0–80.0)" in text
  assert "holds no results" in refused("export", {**card, "results": tmp_path / "run"})
  assert "license is 'a: b'" in refused("export", {"license": "a: b"})
  assert "base_model is 'a: b'" in refused("export", {"base_model": "a: b"})


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, None),
    ({"control": "blank"}, "under the control 'blank', without the image"),
    ({"method": "majority"}, "with the method 'majority'"),
    ({"checkpoint": "models/base"}, "measured on models/base, which is another policy; evaluate "),
  ],
)
def test_only_results_of_the_exported_policy_go_into_its_card(tmp_path, changes, message):
  write_results(tmp_path, **{"checkpoint": str(tmp_path / "export"), **changes})
  if message is None:
    assert "records 64" in read_results(str(tmp_path), [tmp_path / "run", tmp_path / "export"])
  else:
    with pytest.raises(config.UsageError, match=message):
      read_results(str(tmp_path), [tmp_path / "export"])


def test_weights_stream_and_are_written_in_the_requested_dtype_and_sizes(
  run, sft_changes, before_saving, tmp_path, monkeypatch
):
  with before_saving(2):
    run("sft", tmp_path / "run", sft_changes)
  read, restore = [], Checkpoints.restore

  def counted(self, state, partial=False):
    read.append([leaf.shape for leaf in jax.tree.leaves(state)])
    return restore(self, state, partial)

  asked, item_metadata = [], CheckpointManager.item_metadata

  def metadata(self, step):
    asked.append(step)
    return item_metadata(self, step)

  monkeypatch.setattr(Checkpoints, "restore", counted)
  monkeypatch.setattr(CheckpointManager, "item_metadata", metadata)
  half = {"run": tmp_path / "run", "dtype": "bfloat16", "max_file_bytes": 50_000}
  assert run("export", tmp_path / "half", half, devices=8).code == 0
  assert {len(shapes) for shapes in read} == {1}
  assert asked == [1]  # for the shapes, which opens every array
  config_half, params = read_checkpoint(tmp_path / "half")
  assert len(read) == len(jax.tree.leaves(params))
  assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
  assert run("export", tmp_path / "full", {"run": tmp_path / "run"}).code == 0
  config_full, expected = read_checkpoint(tmp_path / "full")
  assert config_half == config_full
  expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), expected)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_settings_that_do_not_exist(refused):
  assert "float32, bfloat16" in refused("export", {"dtype": "float8"})
  assert "max_file_bytes is 0" in refused("export", {"max_file_bytes": 0})


def test_exporting_leaves_a_running_run_unchanged(
  run, sft_changes, before_saving, tmp_path, capsys
):
  with before_saving(2):
    run("sft", tmp_path / "run", sft_changes)
  writing = tmp_path / "run" / "checkpoints" / "2.orbax-checkpoint-tmp"
  writing.mkdir()
  assert run("export", tmp_path / "exported", {"run": tmp_path / "run"}).code == 0
  assert writing.is_dir()
  settings = (tmp_path / "run" / "config.json").read_bytes()
  assert run("export", tmp_path / "run", {"run": tmp_path / "run"}).code == 2
  assert "is the run itself" in capsys.readouterr().err
  assert (tmp_path / "run" / "config.json").read_bytes() == settings


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (None, "is not a workdir of `sft` or `dapo`"),
    ("{", "is not a workdir of `sft` or `dapo`"),
    (json.dumps({"config": {"seed": 0}}), "is not a workdir of `sft` or `dapo`"),
    (json.dumps({"config": {"checkpoint": "."}}), "is not a workdir of `sft` or `dapo`"),
    (
      json.dumps({"config": {"algorithm": "sft", "checkpoint": "no/such/folder"}}),
      "no/such/folder does not exist",
    ),
  ],
)
def test_folders_that_are_not_a_run_are_refused(run, tmp_path, capsys, content, message):
  (tmp_path / "run").mkdir()
  if content is not None:
    (tmp_path / "run" / "config.json").write_text(content)
  assert run("export", tmp_path / "exported", {"run": tmp_path / "run"}).code == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_run_without_a_checkpoint(run, nano, tmp_path, capsys):
  settings = {"algorithm": "sft", "checkpoint": str(nano)}
  (tmp_path / "config.json").write_text(json.dumps({"config": settings}))
  assert run("export", tmp_path / "exported", {"run": tmp_path}).code == 2
  assert "has no complete checkpoint yet" in capsys.readouterr().err


def test_presets():
  tiny, full = (config.leaves(config.read_preset(f"configs/export.py:{n}")) for n in ("tiny", "8b"))
  assert (
    tiny.keys()
    == full.keys()
    == {
      *("algorithm", "run", "adapter", "dtype", "max_file_bytes"),
      *("results", "license", "base_model"),
    }
  )
  assert (tiny["dtype"], full["dtype"]) == ("float32", "bfloat16")
