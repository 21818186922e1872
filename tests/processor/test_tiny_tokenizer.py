import json

import pytest
from tokenizers import Tokenizer

from spatial_vlm import answers
from spatial_vlm.processor.tiny_tokenizer import COORDINATES, SPECIAL_TOKENS, train_tokenizer


def _pieces(processor, text):
  return [processor.tokenizer.decode([id]) for id in processor.encode_text(text)]


@pytest.mark.parametrize(
  "context", ["{}", "x={}", "[{}, {}]", " {}", "gap={}.", "a{}b", "_{}_", "{}\n", "-{}", "é{},"]
)
def test_each_coordinate_is_one_token_in_any_context(tiny, context):
  vocabulary = tiny.tokenizer.get_vocab()
  for number in COORDINATES:
    ids = tiny.encode_text(context.replace("{}", number))
    assert ids.count(vocabulary[number]) == context.count("{}"), number


def test_other_numbers_are_digits(tiny):
  for number in ("125", "1200", "0020", "2000", "10", "60601"):
    assert _pieces(tiny, f"x={number}")[2:] == list(number)


def test_words_of_every_answer_are_single_tokens(tiny):
  chain = answers.render_chain(
    "find the red circle", "red circle [0, 20, 40, 1000]", "red circle x=20 < x=40", 1
  )
  assert _pieces(tiny, chain) == [
    *("Summary", ":", " find", " the", " red", " circle", "\n"),
    *("Caption", ":", " red", " circle", " [", "0", ", ", "20", ", ", "40", ", ", "1000", "]", "\n"),
    *("Reasoning", ":", " red", " circle", " x", "=", "20", " <", " x", "=", "40", "\n"),
    *("Conclusion", ":", " Yes", "."),
  ]  # fmt: skip
  assert _pieces(tiny, answers.render_direct(0)) == ["No", "."]
  assert _pieces(tiny, "Applying 'behavior_left_of':") == [
    "Applying",
    " '",
    "behavior_left_of",
    "'",
    ":",
  ]


def test_a_listed_name_has_the_same_tokens_as_elsewhere(tiny):
  first, second = (
    tiny.encode_text(" red circle [0, 20, 40, 60], red circle"),
    tiny.encode_text(" red circle"),
  )
  assert first[: len(second)] == first[-len(second) :] == second


def test_ids_are_bytes_first_and_special_tokens_last(tiny):
  assert tiny.encode_text("~") == [0x7E]
  vocabulary = tiny.tokenizer.get_vocab()
  assert [vocabulary[token] for token in SPECIAL_TOKENS] == list(
    range(len(vocabulary) - 8, len(vocabulary))
  )
  assert len(vocabulary) == len(tiny.tokenizer) == tiny.model_config.text.vocab_size <= 512


def test_the_most_frequent_pieces_fill_the_vocabulary(tmp_path):
  texts = ["a rare common commoner", "a common commoner", "a common"]
  size = len(Tokenizer.get_vocab(train_tokenizer([], 1000, tmp_path / "none")))
  tokenizer = train_tokenizer(texts, size + 2, tmp_path / "two")
  learnt = set(tokenizer.get_vocab()) - set(
    train_tokenizer([], 1000, tmp_path / "none").get_vocab()
  )
  assert learnt == {"Ġcommon", "Ġcommoner"}  # " rare" is rarest, "a" a byte
  assert tokenizer.get_vocab_size() == size + 2


def test_training_is_reproducible(tmp_path):
  words = [f" {letter}{letter}" for letter in "zyxwvutsrq"]
  size = train_tokenizer([], 1000, tmp_path / "none").get_vocab_size()
  for name in ("one", "two"):
    tokenizer = train_tokenizer(["".join(words)], size + 5, tmp_path / name)
    learnt = [tokenizer.decode([id]) for id in range(size - 8, size - 8 + 5)]
    assert learnt == sorted(words)[:5]  # ties by alphabet, not by the order of a set
  files = sorted(path.name for path in (tmp_path / "one").iterdir())
  assert "chat_template.jinja" in files and "video_preprocessor_config.json" in files
  for file in files:
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_too_small_a_vocabulary_says_how_large_it_must_be(tmp_path):
  with pytest.raises(ValueError, match="vocab_size is 256; .* need at least 3"):
    train_tokenizer([], 256, tmp_path)


def test_the_split_survives_loading_with_a_model_configuration(tiny_folder, tiny):
  # transformers rebuilds Qwen2Tokenizer with Qwen's split; this folder must not be recognised as one.
  assert json.loads((tiny_folder / "config.json").read_text())["model_type"] == "qwen3_vl"
  raw = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
  text = "red circle [120, 340], x=160\n\n  'behavior_left_of': don't"
  assert tiny.tokenizer(text).input_ids == raw.encode(text).ids
