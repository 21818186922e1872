"""Checkpoint folders: read from transformers, written for transformers, refused with reasons."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from spatial_vlm.model.config import PRESETS
from spatial_vlm.model.weights import read_checkpoint, tensors, write_checkpoint


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_export_loads_in_transformers_with_equal_tensors(reference, tmp_path, size):
  reference = reference(size)
  write_checkpoint(tmp_path, reference.config, reference.params)
  model, report = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
    tmp_path, output_loading_info=True
  )
  assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
  expected, got = reference.model.state_dict(), model.state_dict()
  assert expected.keys() == got.keys()
  for name, tensor in expected.items():
    assert tensor.dtype == got[name].dtype
    assert torch.equal(tensor, got[name]), name


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_bit_equal(reference, tmp_path, dtype):
  reference = reference("small")
  params = jax.tree.map(lambda x: x.astype(dtype), reference.params)
  write_checkpoint(tmp_path, reference.config, params)
  config, again = read_checkpoint(tmp_path)
  assert config == reference.config
  assert jax.tree.structure(again) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype(dtype)}


def test_bfloat16_export_loads_as_bfloat16(reference, tmp_path):
  reference = reference("tiny")
  params = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), reference.params)
  write_checkpoint(tmp_path, reference.config, params)
  model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(tmp_path)
  assert model.dtype == torch.bfloat16
  for name, tensor in reference.model.state_dict().items():
    assert torch.equal(tensor.to(torch.bfloat16), model.state_dict()[name]), name


def test_shards_are_read(reference, tmp_path):
  reference = reference("tiny")
  reference.model.save_pretrained(tmp_path, max_shard_size="1MB")
  assert len(list(tmp_path.glob("*.safetensors"))) > 3
  config, params = read_checkpoint(tmp_path)
  assert config == reference.config
  jax.tree.map(np.testing.assert_array_equal, params, reference.params)


def test_tied_head_is_stored_once(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params)
  assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
  assert "head" not in reference.params


def test_all_differences_are_listed_together(reference, tmp_path):
  reference = reference("tiny")
  write_checkpoint(tmp_path, reference.config, reference.params)
  weights = load_file(tmp_path / "model.safetensors")
  del weights["model.visual.blocks.2.attn.qkv.bias"]
  del weights["model.language_model.layers.5.mlp.up_proj.weight"]
  weights["model.visual.merger.norm.weight"] = np.ones(5, np.float32)
  weights["model.language_model.layers.6.input_layernorm.weight"] = np.ones(128, np.float32)
  save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
  with pytest.raises(ValueError, match="4 differences") as caught:
    read_checkpoint(tmp_path)
  assert str(caught.value).splitlines()[1:] == [
    "  missing: model.language_model.layers.5.mlp.up_proj.weight [320, 128]",
    "  missing: model.visual.blocks.2.attn.qkv.bias [192]",
    "  not read: model.language_model.layers.6.input_layernorm.weight [128]",
    "  wrong shape: model.visual.merger.norm.weight [5], config.json makes it [64]",
  ]


def test_pickled_weights_are_refused(reference, tmp_path):
  shutil.copy(f"{reference('tiny').folder}/config.json", tmp_path)
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
  with pytest.raises(FileNotFoundError, match="pytorch_model.bin, but pickled weights"):
    read_checkpoint(tmp_path)


def test_what_is_written_replaces_a_checkpoint_in_several_files(reference, tmp_path):
  config, params = read_checkpoint(reference("tiny").folder)
  index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"of another model")
  write_checkpoint(tmp_path, config, params)
  jax.tree.map(np.testing.assert_array_equal, read_checkpoint(tmp_path)[1], params)


def test_damaged_weights_are_named(reference, tmp_path):
  for name in ("config.json", "model.safetensors"):
    shutil.copy(f"{reference('tiny').folder}/{name}", tmp_path)
  whole = (tmp_path / "model.safetensors").read_bytes()
  (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match="model.safetensors is damaged"):
    read_checkpoint(tmp_path)


def test_a_folder_without_weights_or_config_says_so(reference, tmp_path):
  with pytest.raises(FileNotFoundError, match="has no config.json"):
    read_checkpoint(tmp_path)
  index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
  shutil.copy(f"{reference('tiny').folder}/config.json", tmp_path)
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(FileNotFoundError, match="lacks model-00001-of-00002.safetensors"):
    read_checkpoint(tmp_path)


def test_table_holds_all_750_tensors_of_the_8b_checkpoint():
  stacks = {"blocks": 27, "layers": 36, "deepstack_merger_list": 3}
  names = [tensor.name for tensor in tensors(PRESETS["8b"])]
  total = sum(
    next((layers for stack, layers in stacks.items() if f"{stack}.{{}}" in name), 1)
    for name in names
  )
  assert total == 750
  assert len(names) == len(set(names))
