"""Configurations: both generations of config.json, presets, refusals."""

import copy
import dataclasses

import pytest
import transformers

from spatial_vlm.model.config import PRESETS, ModelConfig


@pytest.mark.parametrize("preset", PRESETS)
def test_config_survives_transformers(preset, tmp_path):
  """Written, loaded and saved by transformers, read again: the same."""
  config = PRESETS[preset]
  transformers.Qwen3VLConfig(**config.to_huggingface()).save_pretrained(tmp_path)
  loaded = transformers.Qwen3VLConfig.from_pretrained(tmp_path)
  assert ModelConfig.from_huggingface(loaded.to_dict()) == config
  assert hash(ModelConfig.from_huggingface(config.to_huggingface())) == hash(config)


def _published(config: ModelConfig) -> dict:
  """As transformers 4.57 wrote the published checkpoints' config.json."""
  written = config.to_huggingface()
  text, vision = written["text_config"], written["vision_config"]
  rope = text.pop("rope_parameters")
  text["rope_theta"] = int(rope.pop("rope_theta"))
  text["rope_scaling"] = rope
  vision["model_type"] = "qwen3_vl"
  del vision["rope_parameters"]
  return written


def test_older_config_is_read():
  assert ModelConfig.from_huggingface(_published(PRESETS["8b"])) == PRESETS["8b"]


def test_rotary_settings_are_written_for_both_generations():
  written = PRESETS["8b"].to_huggingface()
  for other in (("rope_parameters",), ("rope_scaling", "rope_theta")):
    alone = copy.deepcopy(written)
    for name in other:
      del alone["text_config"][name]
    assert ModelConfig.from_huggingface(alone) == PRESETS["8b"]


@pytest.mark.parametrize("eos", [151_645, (151_645, 151_643)])
def test_ids_that_end_and_pad_are_kept(eos):
  config = dataclasses.replace(
    PRESETS["8b"], bos_token_id=151_643, eos_token_id=eos, pad_token_id=7
  )
  written = config.to_huggingface()
  assert ModelConfig.from_huggingface(written) == config
  text = transformers.Qwen3VLConfig(**written).text_config
  assert text.eos_token_id == (list(eos) if isinstance(eos, tuple) else eos)
  assert (text.bos_token_id, text.pad_token_id) == (151_643, 7)
  # An entry beside the text section is read too, as some trainers write it.
  written["eos_token_id"] = written["text_config"].pop("eos_token_id")
  assert ModelConfig.from_huggingface(written) == config


@pytest.mark.parametrize("eos", ["<|im_end|>", [1, None], True, 1.5])
def test_ends_that_are_no_ids_are_refused(eos):
  written = PRESETS["8b"].to_huggingface()
  written["text_config"]["eos_token_id"] = eos
  with pytest.raises(ValueError, match="eos_token_id .* must be a token id or a list of them"):
    ModelConfig.from_huggingface(written)


def test_top_level_says_whether_the_head_is_tied():
  written = PRESETS["8b"].to_huggingface()
  written["text_config"]["tie_word_embeddings"] = True
  assert not ModelConfig.from_huggingface(written).tie_word_embeddings


@pytest.mark.parametrize(
  ("section", "name", "value", "message"),
  [
    (None, "model_type", "qwen3_vl_moe", "model_type 'qwen3_vl_moe'.*supports 'qwen3_vl'"),
    ("text_config", "attention_bias", True, "attention_bias True"),
    ("text_config", "hidden_act", "gelu", "text hidden_act 'gelu'.*'silu'"),
    ("vision_config", "hidden_act", "gelu", "vision hidden_act 'gelu'.*'gelu_pytorch_tanh'"),
    ("vision_config", "deepstack_visual_indexes", [16, 8], "ascending layer numbers from 0 to 26"),
    ("vision_config", "deepstack_visual_indexes", [27], "ascending layer numbers from 0 to 26"),
    ("vision_config", "out_hidden_size", 100, "out_hidden_size 100 must be the text width 4096"),
    ("vision_config", "num_heads", 7, "1152 over 7 heads"),
    ("vision_config", "num_position_embeddings", 50, "num_position_embeddings is 50"),
    ("text_config", "num_key_value_heads", 5, "32 query heads cannot share 5"),
    ("text_config", "head_dim", 64, "adds up to 64; it must be half of head_dim 64"),
  ],
)
def test_unsupported_features_are_refused(section, name, value, message):
  written = copy.deepcopy(PRESETS["8b"].to_huggingface())
  (written[section] if section else written)[name] = value
  with pytest.raises(ValueError, match=message):
    ModelConfig.from_huggingface(written)


@pytest.mark.parametrize(
  "rope", [{"rope_type": "yarn"}, {"mrope_interleaved": False}, {"mrope_section": [16, 24, 23]}]
)
def test_other_rotations_are_refused(rope):
  written = PRESETS["8b"].to_huggingface()
  written["text_config"]["rope_parameters"] |= rope
  with pytest.raises(ValueError):
    ModelConfig.from_huggingface(written)


def test_a_null_rope_scaling_means_the_published_sections():
  written = PRESETS["8b"].to_huggingface()
  del written["text_config"]["rope_parameters"]
  written["text_config"]["rope_scaling"] = None
  assert ModelConfig.from_huggingface(written) == PRESETS["8b"]
  written["text_config"]["head_dim"] = 64
  with pytest.raises(ValueError, match=r"mrope_section \(24, 20, 20\) adds up to 64"):
    ModelConfig.from_huggingface(written)


def test_a_missing_entry_is_named():
  written = PRESETS["8b"].to_huggingface()
  del written["text_config"]["head_dim"]
  with pytest.raises(ValueError, match="lacks 'head_dim'"):
    ModelConfig.from_huggingface(written)


def test_token_ids_can_be_replaced():
  changed = dataclasses.replace(PRESETS["tiny"], image_token_id=7)
  assert ModelConfig.from_huggingface(changed.to_huggingface()).image_token_id == 7


@pytest.mark.parametrize("method", ["fp8", "awq", "gptq", "compressed-tensors"])
@pytest.mark.parametrize("section", [None, "text_config"])
def test_quantized_weights_are_named_in_one_line(method, section):
  config = PRESETS["8b"].to_huggingface()
  (config if section is None else config[section])["quantization_config"] = {"quant_method": method}
  with pytest.raises(ValueError, match=f"quantized by {method.upper()}, which is not") as error:
    ModelConfig.from_huggingface(config)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "change", [{"model_type": "qwen3_vl_moe"}, {"text_config": {"num_experts": 128}}]
)
def test_a_mixture_of_experts_is_named_in_one_line(change):
  config = PRESETS["8b"].to_huggingface()
  with pytest.raises(ValueError, match="a mixture of experts") as error:
    ModelConfig.from_huggingface({**config, **change})
  assert "\n" not in str(error.value)
