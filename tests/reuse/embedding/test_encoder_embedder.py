"""The embedder of an encoder: its similarities against FlagEmbedding's formulas, batches, files."""

import concurrent.futures
import json
import shutil
import time

import jax
import numpy as np
import pytest
import tokenizers
from encoder_reference import random_encoder, reference_heads, reference_states, write_published
from tokenizers import models, pre_tokenizers

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.huggingface.encoder_folder import write_encoder
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig, init_encoder
from spatial_vlm.processor import encoder_tokenizer
from spatial_vlm.reuse.embedding import encoder_embedder
from spatial_vlm.reuse.embedding.embedder import load_embedder
from spatial_vlm.reuse.embedding.encoder_embedder import EncoderEmbedder, batches
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.reuse.handbook.handbook import Handbook
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex

WORDS = "the x is left right of y above below on not from z's view at to side".split()
CONFIG = XlmRobertaConfig.small(
  max_tokens=40, vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
)
TEXTS = [
  "the x is left of the y",
  "the x is to the left side of the y",
  "the x is above the y",
  "not left of",
  "ж",
  "",
]


def write_tokenizer(folder):
  vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
  ids = {token: id for id, token in enumerate(vocabulary)}
  tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
  folder = tmp_path_factory.mktemp("encoder")
  model, heads = random_encoder(CONFIG)
  write_published(folder, model, heads)
  write_tokenizer(folder)
  return folder, model, heads


@pytest.fixture(scope="module")
def embedder(published):
  return EncoderEmbedder(str(published[0]))


@pytest.fixture(scope="module")
def expected(published):
  """FlagEmbedding's outputs, one text at a time."""
  folder, model, heads = published
  tokenizer = encoder_tokenizer.load_encoder_tokenizer(folder, CONFIG)
  found = []
  for row in tokenizer.encode(TEXTS, 40):
    tokens = np.array([row])
    states = reference_states(model, tokens, np.ones_like(tokens))
    found.append(reference_heads(states[0], heads, tokens[0], len(row)))
  return found


def test_vectors_are_the_dense_ones(embedder, expected):
  found = embedder.embed(TEXTS)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [dense for dense, _, _ in expected], atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
  assert embedder.embed([]).shape == (0, 32)


def test_similarities_are_the_published_sum(embedder, expected):
  def score(query, candidate):
    (dense, lexical, vectors), (dense_c, lexical_c, vectors_c) = query, candidate
    product = sum(w * lexical_c.get(token, 0) for token, w in lexical.items())
    lengths = [sum(w * w for w in weights.values()) ** 0.5 for weights in (lexical, lexical_c)]
    same = product / np.prod(lengths) if all(lengths) else dense @ dense_c
    late = (vectors @ vectors_c.T).max(axis=1).mean()
    return 0.4 * (dense @ dense_c) + 0.2 * same + 0.4 * late

  found = embedder.similarities(TEXTS, TEXTS[:4])
  assert found.shape == (6, 4) and found.dtype == np.float32
  for i, query in enumerate(expected):
    for j, candidate in enumerate(expected[:4]):
      assert found[i, j] == pytest.approx(score(query, candidate), abs=1e-5)
  assert any(lexical for _, lexical, _ in expected[:4])


def test_equal_texts_have_similarity_one(embedder):
  found = embedder.similarities(TEXTS, TEXTS)
  np.testing.assert_allclose(np.diag(found), 1, atol=1e-5)
  assert (np.abs(found) <= 1).all() and found[0, 2] < 0.99
  assert embedder.similarities(["", "ж"], [""]).shape == (2, 1)  # no lexical weights at all
  assert embedder.similarities([], TEXTS).shape == (0, 6)
  assert embedder.similarities(TEXTS, []).shape == (6, 0)


def test_texts_are_encoded_once(published, monkeypatch):
  embedder = EncoderEmbedder(str(published[0]))
  before = embedder.similarities(TEXTS, TEXTS[::-1])
  monkeypatch.setattr(encoder_embedder, "_encode", None)
  np.testing.assert_array_equal(embedder.similarities(TEXTS, TEXTS[::-1]), before)


def test_threads_encode_one_after_another(published, monkeypatch):
  embedder, encode, running = EncoderEmbedder(str(published[0])), encoder_embedder._encode, []

  def slow(*arguments):
    running.append(len(running))
    time.sleep(0.02)
    found = encode(*arguments)
    assert running.pop() == 0 and not running
    return found

  monkeypatch.setattr(encoder_embedder, "_encode", slow)
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    found = list(threads.map(lambda text: embedder.embed([text])[0], TEXTS))
  np.testing.assert_allclose(found, embedder.embed(TEXTS), atol=1e-6)


def test_an_index_finds_behaviors_by_it(embedder, tmp_path):
  texts = TEXTS[:4]
  behaviors = tuple(
    Behavior(f"behavior_{n}", f"yes when {n}", f"relation {n}", (text,), ("train:1",), 5)
    for n, text in enumerate(texts)
  )
  index = BehaviorIndex(Handbook(9, 99, behaviors), embedder, 0.99)
  index.save(tmp_path)
  for found in (index, BehaviorIndex.load(tmp_path, embedder)):
    matches = found.search([*texts, "ж on z's"], k=1)
    assert [[b.name for b, _ in row] for row in matches[:4]] == [[b.name] for b in behaviors]
    assert matches[4] == []


def test_the_cache_is_bounded(published, monkeypatch):
  monkeypatch.setattr(encoder_embedder, "CACHED_TOKENS", 20)
  embedder = EncoderEmbedder(str(published[0]))
  embedder.embed([f"left {word}" for word in WORDS])
  assert 0 < sum(len(e.vectors) for e in embedder._cache.values()) <= 20
  assert f"left {WORDS[-1]}" in embedder._cache


def test_texts_longer_than_the_positions_are_cut(embedder):
  long = "left " * 100
  np.testing.assert_allclose(embedder.embed([long]), embedder.embed(["left " * 38]), atol=1e-6)


def test_each_row_is_in_one_batch_and_few_programs_compile():
  lengths = np.random.default_rng(0).integers(2, 8193, 3000).tolist() + [2, 16, 17, 8192]
  found = list(batches(lengths, 8192))
  assert sorted(number for rows, _ in found for number in rows) == list(range(len(lengths)))
  for rows, length in found:
    assert all(lengths[number] <= length for number in rows)
    assert len(rows) * length <= 8192
  assert len({(len(rows), length) for rows, length in found}) <= 40


def test_the_fingerprint_names_the_vector_space(published, embedder, tmp_path):
  assert embedder.fingerprint.startswith("encoder-")
  assert embedder.fingerprint == EncoderEmbedder(str(published[0])).fingerprint
  assert embedder.fingerprint != EncoderEmbedder(str(published[0]), "bfloat16").fingerprint
  folder = shutil.copytree(published[0], tmp_path / "encoder")
  tokenizer = (folder / "tokenizer.json").read_text()
  (folder / "tokenizer.json").write_text(tokenizer + "\n")
  assert EncoderEmbedder(str(folder)).fingerprint != embedder.fingerprint
  (folder / "tokenizer.json").write_text(tokenizer)
  write_encoder(folder, CONFIG, init_encoder(CONFIG, jax.random.key(0)))
  assert EncoderEmbedder(str(folder)).fingerprint != embedder.fingerprint


def test_the_callers_mesh_does_not_matter(published, embedder):
  with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})):
    other = EncoderEmbedder(str(published[0]))
    found = other.similarities(TEXTS, TEXTS)
  assert other.fingerprint == embedder.fingerprint
  np.testing.assert_allclose(found, embedder.similarities(TEXTS, TEXTS), atol=1e-6)


def test_bfloat16_is_close(published, embedder):
  found = EncoderEmbedder(str(published[0]), "bfloat16").embed(TEXTS)
  assert found.dtype == np.float32
  np.testing.assert_allclose((found * embedder.embed(TEXTS)).sum(axis=1), 1, atol=2e-3)


def test_min_similarity_is_read_from_the_folder(published, tmp_path, caplog):
  assert EncoderEmbedder(str(published[0])).min_similarity == 0.8
  assert "has no similarity.json: matches need the similarity 0.8, which is not" in caplog.text
  folder = shutil.copytree(published[0], tmp_path / "encoder")
  file = folder / "similarity.json"
  file.write_text(json.dumps({"min_similarity": 0.61, "calibrated_on": "paraphrases"}))
  assert load_embedder(str(folder)).min_similarity == 0.61
  for wrong in ("{}", "[]", "no", '{"min_similarity": 2}', '{"min_similarity": "0.5"}'):
    file.write_text(wrong)
    with pytest.raises(UsageError, match="similarity.json"):
      EncoderEmbedder(str(folder))


def test_a_wrong_folder_is_refused(published, tmp_path):
  with pytest.raises(UsageError, match="folder of an XLM-RoBERTa encoder, or 'lexical'"):
    load_embedder("lexicon")
  folder = shutil.copytree(published[0], tmp_path / "encoder")
  (folder / "sparse_linear.pt").unlink()
  with pytest.raises(UsageError, match="lacks sparse_linear.pt"):
    load_embedder(str(folder))
  (folder / "tokenizer.json").unlink()
  with pytest.raises(UsageError, match="neither sentencepiece.bpe.model nor tokenizer.json"):
    load_embedder(str(folder))
