"""Tokenizers of the encoder against transformers, on strings that are hard; the only tests that import TensorFlow."""

import io
import random
import sys

import numpy as np
import pytest
import transformers
from etils import epath

from spatial_vlm.model.xlm_roberta import XlmRobertaConfig
from spatial_vlm.processor import sentencepiece
from spatial_vlm.processor.encoder_tokenizer import load_encoder_tokenizer
from spatial_vlm.reuse.index import searchers

CONFIG = XlmRobertaConfig.small(
  vocab_size=262, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
)
TEXTS = [
  "The cat is left of the dog.",
  "The red circle is not to the left of the potted plant's edge, 3.5 px away!",
  "un éléphant près d'une Straße, naïve Ωμέγα",
  "猫在桌子上面。狗在椅子下面。",
  "ＡＢＣ　１２３ ｱｲｳ",
  "the 🐱 sat on 👩‍👩‍👧 ☃️",
]
HARD = {
  "empty": "",
  "space": "   ",
  "plain": "The cat is left of the dog.",
  "cjk": "猫在桌子上面。",
  "full width": "ＡＢＣ　１２３",
  "half-width kana": "ｱｲｳ ｶﾞ",
  "emoji": "🐱👩‍👩‍👧 ☃️ 🇨🇭",
  "tabs": "a\tb\n c\r\nd",
  "no-break space": "left\u00a0of\u202fthe",
  "zero width": "a\u200bb\u200dc\ufeffd",
  "ligatures": "ﬁne ½ ² Å Å",
  "combining": "e\u0301 o\u0308\u0323",
  "controls": "a\u0001b\u007fc",
  "unknown": "ж ⵣ 𝔘𝔫𝔦",
  "right to left": "שלום مرحبا",
  "marks": "a▁b ▁ c",
  "spaces": "  lead   trail  ",
  "<s>": "<s>",
  "</s> inside": "the</s>cat",
  "<mask>": "the <mask> cat <mask>.",
  "<pad><unk>": "<pad><unk> < s > <S>",
  "long": "The cat is left of the dog. " * 400,
  "long word": "x" * 3000,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with a SentencePiece model trained as XLM-RoBERTa's: unigram, normalised by nmt_nfkc."""
  trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
  pytest.importorskip("tensorflow_text", reason="needs the extra bge-m3")
  model = io.BytesIO()
  trainer.train(
    sentence_iterator=iter(TEXTS * 30),
    model_writer=model,
    vocab_size=150,
    hard_vocab_limit=False,
    model_type="unigram",
    normalization_rule_name="nmt_nfkc",
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    character_coverage=1.0,
    minloglevel=2,
  )
  folder = tmp_path_factory.mktemp("sentencepiece")
  (folder / "sentencepiece.bpe.model").write_bytes(model.getvalue())
  return folder


@pytest.fixture(scope="module")
def reference(folder):
  return transformers.XLMRobertaTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
  return load_encoder_tokenizer(folder, CONFIG)


@pytest.fixture(scope="module")
def json_tokenizer(reference, tmp_path_factory):
  folder = tmp_path_factory.mktemp("tokenizer_json")
  reference.save_pretrained(folder)
  for file in folder.glob("sentencepiece*"):
    file.unlink()
  return load_encoder_tokenizer(folder, CONFIG)


@pytest.mark.parametrize("name", HARD)
def test_ids_are_those_of_transformers(tokenizer, json_tokenizer, reference, name):
  text = HARD[name]
  expected = reference(text)["input_ids"]
  assert tokenizer.encode([text], 10**6) == [expected]
  assert json_tokenizer.encode([text], 10**6) == [expected]


def test_random_unicode_is_as_sentencepiece_has_it(folder, tokenizer):
  """Also where transformers differs: full-width letters with combining marks."""
  import sentencepiece

  ranges = ((32, 127), (160, 384), (768, 1024), (0x600, 0x700), (0x2000, 0x2070), (0x3040, 0x3100))
  ranges += ((0x4E00, 0x5000), (0xFB00, 0xFB07), (0xFF00, 0xFFF0), (0x1F300, 0x1F600))
  pool = [chr(code) for start, stop in ranges for code in range(start, stop)]
  draw = random.Random(0)
  texts = ["".join(draw.choices(pool, k=draw.randint(0, 40))) for _ in range(2000)]
  model = sentencepiece.SentencePieceProcessor(str(folder / "sentencepiece.bpe.model"))
  expected = [[0, *(id + 1 if id else 3 for id in row), 2] for row in model.encode(texts)]
  assert tokenizer.encode(texts, 10**6) == expected


def test_many_texts_are_as_one_by_one(tokenizer, json_tokenizer):
  texts = list(HARD.values())
  rows = tokenizer.encode(texts, 10**6)
  assert rows == [tokenizer.encode([text], 10**6)[0] for text in texts]
  assert rows == json_tokenizer.encode(texts, 10**6)
  assert tokenizer.encode([], 10) == json_tokenizer.encode([], 10) == []


@pytest.mark.parametrize("length", [2, 3, 16])
def test_long_texts_are_cut_as_transformers_does(tokenizer, json_tokenizer, reference, length):
  text = HARD["long"]
  expected = reference(text, truncation=True, max_length=length)["input_ids"]
  assert len(expected) == length
  assert tokenizer.encode([text], length) == json_tokenizer.encode([text], length) == [expected]


def test_text_that_is_not_unicode_is_read(tokenizer, json_tokenizer):
  text = "cat \ud800 dog"  # as json.loads makes it of an escaped half of a character
  assert tokenizer.encode([text], 99) == json_tokenizer.encode([text], 99)


def test_tensorflow_leaves_the_gpu_to_jax(tokenizer):
  import tensorflow

  assert tensorflow.config.get_visible_devices("GPU") == []


def test_scann_loads_beside_tensorflow_text(tokenizer):
  searcher = searchers.import_scann().scann_ops_pybind.builder(
    np.eye(4, dtype=np.float32), 1, "dot_product"
  )
  found, _ = searcher.score_brute_force().build().search(np.eye(4, dtype=np.float32)[2])
  assert found.tolist() == [2]
  assert tokenizer.encode(["the"], 9)


def test_another_vocabulary_is_refused(folder):
  small = XlmRobertaConfig.small(
    vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
  )
  with pytest.raises(ValueError, match="Use files that belong together"):
    load_encoder_tokenizer(folder, small)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"neither sentencepiece.bpe.model nor tokenizer"):
    load_encoder_tokenizer(epath.Path(tmp_path), CONFIG)


def test_without_tensorflow_text_the_extra_is_named(tmp_path, monkeypatch):
  sentencepiece._tensorflow_text.cache_clear()
  monkeypatch.setitem(sys.modules, "tensorflow_text", None)
  (tmp_path / "sentencepiece.bpe.model").write_bytes(b"")
  with pytest.raises(ImportError, match=r"pip install .*\[bge-m3\]"):
    load_encoder_tokenizer(tmp_path, CONFIG)
