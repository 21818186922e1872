"""Runs that train a part of a policy: what they write, resume from, and refuse."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.parameters.paths import path_name

LORA = {"trainable": "('.*/lora_[ab]',)", "lora.rank": 4, "lora.alpha": 8.0}
ALL_BUT_VISION = {"trainable": "('(text|head)/.*',)"}
IN_INT8 = {**LORA, "frozen_int8": True}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run, sft_changes):
  workdir = tmp_path_factory.mktemp("lora")
  assert run("sft", workdir, {**sft_changes, **LORA}).code == 0
  return workdir


def weights(folder):
  return load_file(folder / "model.safetensors")


def adapted(tensors, adapter):
  """The tensors of a base with an adapter's products added, as PEFT merges them."""
  adapter_config = json.loads((adapter / "adapter_config.json").read_text())
  stored, result = load_file(adapter / "adapter_model.safetensors"), dict(tensors)
  for module in adapter_config["target_modules"]:
    a, b = (stored.pop(f"base_model.model.{module}.lora_{half}.weight") for half in "AB")
    result[f"{module}.weight"] = (
      result[f"{module}.weight"] + adapter_config["lora_alpha"] / adapter_config["r"] * b @ a
    )
  assert not stored and adapter_config["r"] == 4
  return result


def test_the_export_is_the_base_with_the_adapter_merged(finished, nano):
  expected, found = adapted(weights(nano), finished / "adapter"), weights(finished / "export")
  assert found.keys() == expected.keys()
  before = weights(nano)
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)
    is_target = ".layers." in name and "_proj." in name
    assert np.array_equal(value, before[name]) != is_target, name


def test_a_checkpoint_has_the_trained_parameters_and_names_the_base(finished, nano):
  with Checkpoints(finished / "checkpoints", read_only=True) as checkpoints:
    tree = checkpoints._manager.item_metadata(checkpoints.latest())["state"].tree
    base = checkpoints.host()["base"]
  paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
  arrays = [path for path in paths if "layers" in path]
  assert len(arrays) == 3 * 2 * 7  # parameters and two moments; A and B; of seven kernels
  assert all("lora_" in path for path in arrays)
  assert not any("vision" in path or "embed" in path for path in paths)
  assert base["folder"] == str(nano) and "text/embed/embedding" in base["checksums"]


@pytest.mark.parametrize("part", [LORA, pytest.param(ALL_BUT_VISION, marks=pytest.mark.slow)])
def test_an_interrupted_run_equals_an_uninterrupted_one(
  tmp_path, finished, run, sft_changes, outcome, before_saving, part
):
  changes = {**sft_changes, **part}
  whole = finished
  if part is ALL_BUT_VISION:
    whole = tmp_path / "whole"
    assert run("sft", whole, changes).code == 0
    assert not (whole / "adapter").exists()
    before, after = weights(sft_changes["checkpoint"]), weights(whole / "export")
    for name, value in after.items():
      assert np.array_equal(value, before[name]) == (".visual." in name), name
  with before_saving(4):
    run("sft", tmp_path / "parts", changes)
  assert run("sft", tmp_path / "parts", changes).code == 0
  assert outcome(tmp_path / "parts") == outcome(whole)


def in_int8(tensors):
  """The matrices [out, in] of a folder's layers, mergers and patches, each row as whole steps of its largest / 127."""
  result = dict(tensors)
  for name, value in tensors.items():
    if value.ndim > 1 and "embed_tokens" not in name and "pos_embed" not in name:
      rows = value.reshape(len(value), -1)
      step = (np.abs(rows).max(axis=1, keepdims=True) / 127).astype(ml_dtypes.bfloat16)
      step = step.astype(np.float32)
      result[name] = (np.rint(rows / step) * step).reshape(value.shape)
  return result


@pytest.mark.slow
def test_a_run_over_an_int8_base_exports_the_trained_weights(
  tmp_path, run, sft_changes, outcome, before_saving
):
  """Adapters over the base in its storage type; interrupted or not; by `export` too."""
  changes = {**sft_changes, **IN_INT8}
  assert run("sft", tmp_path / "whole", changes).code == 0
  base = in_int8(weights(sft_changes["checkpoint"]))
  expected = adapted(base, tmp_path / "whole" / "adapter")
  found = weights(tmp_path / "whole" / "export")
  assert found.keys() == expected.keys()
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6, err_msg=name)
  loaded = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "whole/export")
  assert all(np.array_equal(loaded.state_dict()[name], found[name]) for name in found)
  with before_saving(4):
    run("sft", tmp_path / "parts", changes)
  assert run("export", tmp_path / "early", {"run": tmp_path / "parts"}).code == 0
  assert run("sft", tmp_path / "parts", changes).code == 0
  assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
  early = weights(tmp_path / "early")
  for name, value in base.items():
    is_target = ".layers." in name and "_proj." in name
    assert np.allclose(early[name], value, rtol=0, atol=1e-7) != is_target, name


def test_export_writes_merged_weights_or_the_adapter_alone(finished, run, tmp_path):
  assert run("export", tmp_path / "merged", {"run": finished}).code == 0
  found, expected = weights(tmp_path / "merged"), weights(finished / "export")
  assert all(np.array_equal(found[name], expected[name]) for name in expected)
  alone = {"run": finished, "adapter": True}
  assert run("export", tmp_path / "alone", alone).code == 0
  names = {path.name for path in (tmp_path / "alone").iterdir()}
  assert {"adapter_config.json", "adapter_model.safetensors"} <= names
  assert not any(name.startswith("model") for name in names)
  for name in ("adapter_config.json", "adapter_model.safetensors"):
    assert (tmp_path / "alone" / name).read_bytes() == (finished / "adapter" / name).read_bytes()


def test_another_base_is_refused(run, sft_changes, before_saving, nano, tmp_path, capsys):
  base = tmp_path / "base"
  base.mkdir()
  for file in nano.iterdir():
    (base / file.name).write_bytes(file.read_bytes())
  changes = {**sft_changes, **LORA, "checkpoint": base}
  with before_saving(3):
    run("sft", tmp_path / "run", changes)
  tensors = weights(base)
  tensors["model.language_model.norm.weight"][3] += 1e-3
  save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
  capsys.readouterr()
  assert run("sft", tmp_path / "run", changes).code == 2
  assert f'other contents under the same names:\n  checkpoint: "{base}"' in capsys.readouterr().err
  assert run("export", tmp_path / "exported", {"run": tmp_path / "run"}).code == 2
  error = capsys.readouterr().err
  assert "1 of the frozen weights (text/final_norm/scale …) differ from those" in error
  assert str(base) in error and error.count("\n") == 1


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"trainable": "('head',)"}, "trainable names 'head', which is the path of no parameter"),
    ({"trainable": "()"}, "trainable is (); it must be a tuple of 1 or more texts"),
    ({"trainable": "('*',)"}, "'*' in trainable or lora.targets is not a regular expression"),
    ({"lora.rank": 2}, "trainable=('.*/lora_[ab]',) trains the factors alone"),
    ({"lora.rank": -1}, "lora.rank is -1"),
    ({"lora.alpha": 0.0}, "lora.alpha is 0.0; it must be above 0"),
    ({**LORA, "lora.targets": "('text/embed/.*',)"}, "only kernels can have LoRA factors"),
    ({"frozen_int8": True}, "frozen_int8 is True, but trainable ('.*',) freezes no kernel"),
    ({**LORA, "from_scratch": True}, "from_scratch draws all weights"),
  ],
)
def test_parts_that_cannot_be_trained(refused, sft_changes, changes, message):
  assert message in refused("sft", {**sft_changes, **changes})


def test_an_adapter_of_a_run_without_lora_is_refused(run, sft_changes, tmp_path, capsys):
  changes = {**sft_changes, **ALL_BUT_VISION, "epochs": 2}
  assert run("sft", tmp_path / "run", changes).code == 0
  settings = {"run": tmp_path / "run", "adapter": True}
  assert run("export", tmp_path / "exported", settings).code == 2
  assert "parameters outside LoRA adapters" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("part", "storage"), [(LORA, dict), pytest.param(IN_INT8, in_int8, marks=pytest.mark.slow)]
)
def test_dapo_trains_lora_adapters(
  run, dapo_changes, outcome, before_saving, tmp_path, part, storage
):
  changes = {**dapo_changes, **part, "steps": 2}
  assert run("dapo", tmp_path / "whole", changes).code == 0
  with before_saving(3):
    run("dapo", tmp_path / "parts", changes)
  assert run("dapo", tmp_path / "parts", changes).code == 0
  assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
  before = storage(weights(dapo_changes["checkpoint"]))
  expected = adapted(before, tmp_path / "whole" / "adapter")
  found = weights(tmp_path / "whole" / "export")
  assert any(not np.array_equal(found[name], before[name]) for name in found)
  for name, value in found.items():
    np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6)
  assert run("export", tmp_path / "again", {"run": tmp_path / "whole"}).code == 0
  again = weights(tmp_path / "again")
  assert all(np.array_equal(again[name], found[name]) for name in found)
