"""Trains, calibrates and scores the tiny encoder that ships in spatial_vlm/assets/tiny_encoder.

python launch/tiny_encoder.py train FOLDER --vsr VSR     trains on paraphrased captions of VSR's train splits, calibrates
python launch/tiny_encoder.py score FOLDER --vsr VSR     precision and recall on VSR's dev captions, as Markdown

VSR is a folder with random/ and zeroshot/, each with train.jsonl and dev.jsonl.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from spatial_vlm.data.records import Record
from spatial_vlm.data.statement import read_statement
from spatial_vlm.data.vsr import read_split
from spatial_vlm.huggingface.encoder_folder import write_encoder
from spatial_vlm.model.xlm_roberta import XlmRobertaConfig, encode, init_encoder
from spatial_vlm.objectives.contrastive import (
  dense_similarities,
  info_nce,
  lexical_similarities,
  vector_similarities,
)
from spatial_vlm.optim.optimizers import OptimizerSettings, make_optimizer
from spatial_vlm.reuse.masking import mask_objects
from spatial_vlm.reuse.paraphrases import Paraphrases, Sentence, caption_template, read_paraphrases

SEED, STEPS = 0, 400
RELATIONS_PER_BATCH, OTHERS_PER_BATCH = 56, 24
VOCABULARY, TOKENS, MAX_TOKENS = 1200, 24, 64
SIZES = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4)
TEMPERATURE = 0.05
LEXICAL_SHARE, LEXICAL_LOSS = 0.3, 0.1
"""Weight of the lexical similarity in the ensemble, and of its own loss (M3-Embedding, section 4.1)."""
MASKED_SHARE = 0.8
"""Share of training texts without their objects' names; in the others an object was not recognized."""
FRAMES = ("{}", "{}", "{}", "{}", "In the picture, {}", "It seems that {}", "We can see that {}")
SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>"]


class PairSource:
  """Draws pairs of texts that mean the same: paraphrases of relations, confusable and unrelated statements."""

  def __init__(self, paraphrases: Paraphrases, captions: list[tuple[str, str]], seed: int):
    self._paraphrases, self._captions = paraphrases, captions
    self._rng = np.random.default_rng(seed)
    self._relations = list(paraphrases.relations)
    self._positives = {
      relation: paraphrases.sentences(relation, "train") for relation in self._relations
    }
    others = [s for r in self._relations for s in paraphrases.confusables(r, "train")]
    unrelated = paraphrases.others("train")
    self._others: dict[str, list[Sentence]] = {}
    for sentence in [*others, *unrelated]:
      self._others.setdefault(sentence.meaning, []).append(sentence)

  def batch(self) -> tuple[list[str], list[str], np.ndarray]:
    """Returns texts, their positives, and which pairs mean the same and are no negatives."""
    relations = self._drawn(self._relations, RELATIONS_PER_BATCH)
    # Negations, viewpoints and exchanged roles of the relations in the batch are its hard negatives.
    hard = [m for m in self._others if any(m.endswith(f" {r}") for r in relations[:12])]
    meanings = [*relations, *self._drawn(list(self._others), OTHERS_PER_BATCH // 2)]
    meanings += self._drawn(hard, min(len(hard), OTHERS_PER_BATCH - OTHERS_PER_BATCH // 2))
    meanings = list(dict.fromkeys(meanings))
    while len(meanings) < RELATIONS_PER_BATCH + OTHERS_PER_BATCH:
      meanings += [m for m in self._drawn(list(self._others), 1) if m not in meanings]
    pairs = [self._pair(meaning) for meaning in meanings]
    same = [[b in self._same(a) for b in meanings] for a in meanings]
    return [a for a, _ in pairs], [b for _, b in pairs], np.array(same)

  def _pair(self, meaning: str) -> tuple[str, str]:
    if meaning not in self._positives:
      first, second = self._drawn(self._others[meaning], 2, replace=True)
      return self._text(first.template), self._text(second.template)
    first, second = self._drawn(self._positives[meaning], 2)
    is_caption = self._rng.random() < 0.6  # what the index holds
    return self._text(first.template), (
      mask_objects(caption_template(meaning).format(X="cat", Y="dog"))
      if is_caption
      else self._text(second.template)
    )

  def _text(self, template: str) -> str:
    subj, obj = self._captions[self._rng.integers(len(self._captions))]
    frame = FRAMES[self._rng.integers(len(FRAMES))]
    clause = template if frame == "{}" else template[0].lower() + template[1:]
    if self._rng.random() < 0.2:
      clause = clause.replace("The {X}", "A {X}").replace("the {Y}", "a {Y}")
    text = frame.format(clause).format(X=subj, Y=obj)
    if self._rng.random() < 0.2:
      text = text.rstrip(".").lower()
    return mask_objects(text) if self._rng.random() < MASKED_SHARE else text

  def _same(self, meaning: str) -> frozenset[str]:
    for qualifier in ("", "not ", "reversed "):
      relation = meaning.removeprefix(qualifier)
      if relation in self._positives:
        return frozenset(f"{qualifier}{same}" for same in self._paraphrases.same(relation))
    return frozenset({meaning})

  def _drawn(self, values: list, count: int, replace: bool = False) -> list:
    chosen = self._rng.choice(len(values), count, replace=replace)
    return [values[i] for i in chosen]


def train_tokenizer(texts: list[str]) -> tokenizers.Tokenizer:
  """Returns a Unigram tokenizer with XLM-RoBERTa's special tokens."""
  tokenizer = tokenizers.Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.Sequence(
    [
      normalizers.NFKC(),
      normalizers.Lowercase(),
      normalizers.Replace(tokenizers.Regex("[.,:;!?]"), ""),
    ]
  )
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  trainer = trainers.UnigramTrainer(
    vocab_size=VOCABULARY, special_tokens=SPECIAL_TOKENS, unk_token="<unk>", show_progress=False
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
  )
  return tokenizer


def rows(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> np.ndarray:
  """Returns tokens [B, TOKENS], padded with `<pad>`."""
  encoded = [row.ids[:TOKENS] for row in tokenizer.encode_batch(texts)]
  return np.array([ids + [1] * (TOKENS - len(ids)) for ids in encoded], np.int32)


def contrastive_loss(params, config: XlmRobertaConfig, queries, candidates, same):
  """Returns the mean loss of the three similarities and of their ensemble, both directions, as M3-Embedding."""
  q_mask, c_mask = queries != 1, candidates != 1
  q, c = encode(params, config, queries, q_mask), encode(params, config, candidates, c_mask)
  dense = dense_similarities(q, c)
  lexical = lexical_similarities(q, queries, c, candidates, config.vocab_size)
  vectors = vector_similarities(q, q_mask, c, c_mask)
  ensemble = (dense + LEXICAL_SHARE * lexical + vectors) / (2 + LEXICAL_SHARE)
  total = 0.0
  for weight, scores in ((1, dense), (LEXICAL_LOSS, lexical), (1, vectors), (1, ensemble)):
    for one_way in (scores, scores.T):
      loss, count = info_nce(one_way, same, TEMPERATURE)
      total += weight * loss / count
  return total / (2 * (3 + LEXICAL_LOSS)), jnp.mean(jnp.argmax(ensemble, 1) == jnp.arange(len(q_mask)))


def train(folder: Path, vsr: Path) -> None:
  """Trains tokenizer and encoder, writes them and the calibrated least similarity."""
  start = time.monotonic()
  records = read_vsr(vsr, "train")
  captions = [(s[0], s[2]) for r in records if (s := read_statement(r.caption))]
  source = PairSource(read_paraphrases(), captions, SEED)
  batches = [source.batch() for _ in range(STEPS)]
  texts = [text for queries, candidates, _ in batches[:200] for text in (*queries, *candidates)]
  tokenizer = train_tokenizer(texts)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / "tokenizer.json"))
  config = XlmRobertaConfig(
    vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=MAX_TOKENS + 2, **SIZES
  )
  optimizer = make_optimizer(OPTIMIZER)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, queries, candidates, same):
    gradient = jax.value_and_grad(contrastive_loss, has_aux=True)
    (loss, accuracy), gradients = gradient(params, config, queries, candidates, same)
    updates, state = optimizer.update(gradients, state, params)
    return jax.tree.map(jnp.add, params, updates), state, loss, accuracy

  params = init_encoder(config, jax.random.key(SEED))
  state = optimizer.init(params)
  for number, (queries, candidates, same) in enumerate(batches):
    arrays = rows(tokenizer, queries), rows(tokenizer, candidates), same
    params, state, loss, accuracy = step(params, state, *arrays)
    if number % 50 == 49:
      seconds = time.monotonic() - start
      print(f"{number + 1} loss {loss:.3f} accuracy {accuracy:.2f} {seconds:.0f} s", flush=True)
  write_encoder(folder, config, jax.device_get(params))


OPTIMIZER = OptimizerSettings(
  method="muon",
  moments="float32",
  beta1=0.9,
  beta2=0.98,
  eps=1e-8,
  weight_decay=0.01,
  clip_norm=1.0,
  schedule="cosine",
  learning_rate=3e-3,
  warmup_steps=40,
  total_steps=STEPS,
  final_fraction=0.02,
)


def read_vsr(folder: Path, split: str) -> list[Record]:
  return [r for name in ("random", "zeroshot") for r in read_split(folder / name, split).records]


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("action", choices=("train", "score"))
  parser.add_argument("folder", type=Path)
  parser.add_argument("--vsr", type=Path, required=True)
  args = parser.parse_args()
  {"train": train}[args.action](args.folder, args.vsr)


if __name__ == "__main__":
  main()
