import dataclasses
import shutil

import pytest

from spatial_vlm.config import PACKAGE_FOLDER
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tokenizer import (
  SpecialIds,
  byte_characters,
  fit_config,
  load_tokenizer,
  token_bytes,
)

HARD_TEXTS = (
  "émigré, e\u0301 and 日本 🐈\u200d⬛ naïve\ufeff",
  "tabs\t\tand\r\nlines\n\n  \n end ",
  "x=120, 340 [1000, 20] 125 1200 007 behavior_left_of's",
  "".join(map(chr, range(0x250))),
)


def test_folder_without_tokenizer_says_what_is_missing(tmp_path):
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"tokenizer_config\.json missing"):
    load_tokenizer(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"nowhere.*tokenizer\.json"):
    load_tokenizer(tmp_path / "nowhere")


def test_token_bytes_spell_every_text(processor):
  table = token_bytes(processor.tokenizer)
  for text in HARD_TEXTS:
    ids = processor.encode_text(text)
    spelled = b"".join(table[id] for id in ids).decode()
    assert spelled == processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if processor.tokenizer.backend_tokenizer.normalizer is None:
      assert spelled == text


def test_token_bytes_of_special_and_added_tokens(processor):
  table = token_bytes(processor.tokenizer)
  vocabulary = processor.tokenizer.get_vocab()
  assert len(table) == len(processor.tokenizer)
  for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"):
    assert table[vocabulary[token]] == b""
  if "<think>" in vocabulary:
    assert table[vocabulary["<think>"]] == b"<think>"


def test_byte_characters_are_those_of_byte_level_bpe():
  from tokenizers import pre_tokenizers

  table = byte_characters()
  split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  for text in HARD_TEXTS:
    assert "".join(table[byte] for byte in text.encode()) == split.pre_tokenize_str(text)[0][0]
  assert len(set(table.values())) == 256


def test_everything_special_but_the_end_of_turn_is_never_sampled(processor):
  wider = dataclasses.replace(
    processor.model_config,
    text=dataclasses.replace(processor.model_config.text, vocab_size=len(processor.tokenizer) + 3),
  )
  ids = SpecialIds.of(processor.tokenizer, wider)
  vocabulary = processor.tokenizer.get_vocab()
  special = {id for token, id in vocabulary.items() if token.startswith("<|")}
  rows_without_token = {len(vocabulary), len(vocabulary) + 1, len(vocabulary) + 2}
  assert set(ids.never_sampled) == (special | rows_without_token) - {vocabulary["<|im_end|>"]}
  assert ids.eos == vocabulary["<|im_end|>"] and ids.image == vocabulary["<|image_pad|>"]
  assert ids.pad == processor.tokenizer.pad_token_id in ids.never_sampled


def test_disagreement_with_the_model_is_an_error(tiny):
  config = tiny.model_config
  with pytest.raises(ValueError, match="image_token_id is 7 in"):
    SpecialIds.of(tiny.tokenizer, dataclasses.replace(config, image_token_id=7))
  small = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=300))
  with pytest.raises(ValueError, match="embeds only 300"):
    SpecialIds.of(tiny.tokenizer, small)


def test_fit_config_takes_sizes_and_ids_from_the_tokenizer(processor):
  from spatial_vlm.model.config import PRESETS

  config = fit_config(PRESETS["tiny"], processor.tokenizer)
  assert config.text.vocab_size == len(processor.tokenizer)
  assert config.vision_end_token_id == processor.tokenizer.convert_tokens_to_ids("<|vision_end|>")
  SpecialIds.of(processor.tokenizer, config)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    (
      "assistant\\n",
      "assistant\\n<think>\\n",
      r"assistant\\n' its chat template writes '<think>\\n', .*Thinking",
    ),
    ("{%- for", "{{- '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{%- for", "writes .*Be kind"),
    ("{%- for", "{%- nonsense", "its chat template cannot be rendered: .*nonsense"),
  ],
)
def test_a_template_that_renders_otherwise_is_refused_in_one_line(tmp_path, old, new, message):
  """That of a Thinking model; one with a system turn of its own; one that is no template."""
  folder = tmp_path / "other"
  shutil.copytree(PACKAGE_FOLDER / "assets" / "tiny_base", folder)
  template = load_tokenizer(folder).chat_template
  begin, found, end = template.rpartition(old) if old != "{%- for" else template.partition(old)
  assert found
  (folder / "chat_template.jinja").write_text(begin + new + end)
  with pytest.raises(ValueError, match=message) as error:
    load_tokenizer(folder)
  assert "\n" not in str(error.value)


def test_a_remote_folder_gives_the_same_processor(nano, gcs_folder):
  address, store = gcs_folder
  local, remote = Processor.from_folder(nano), Processor.from_folder(store.upload(nano, address))
  assert (remote.image_settings, remote.video_settings) == (
    local.image_settings,
    local.video_settings,
  )
  assert remote.model_config == local.model_config
  assert remote.tokenizer.get_vocab() == local.tokenizer.get_vocab()
  assert remote.tokenizer.chat_template == local.tokenizer.chat_template
  for text in HARD_TEXTS:
    assert remote.encode_text(text) == local.encode_text(text)
  with pytest.raises(FileNotFoundError, match=r"gs://.*none.*tokenizer\.json"):
    load_tokenizer(f"{address}/none")
