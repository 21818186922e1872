"""Trains, calibrates and scores the tiny encoder that ships in spatial_vlm/assets/tiny_encoder.

python launch/tiny_encoder.py train FOLDER --vsr VSR      trains on paraphrases of VSR's train captions; calibrates
python launch/tiny_encoder.py calibrate FOLDER --vsr VSR  writes similarity.json again
python launch/tiny_encoder.py score FOLDER --vsr VSR      precision and recall on VSR's dev captions, as Markdown

VSR is a folder with random/ and zeroshot/, each with train.jsonl and dev.jsonl.
"""

import argparse
import collections
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
from spatial_vlm.reuse.embedding.embedder import Embedder, LexicalEmbedder
from spatial_vlm.reuse.embedding.encoder_embedder import EncoderEmbedder
from spatial_vlm.reuse.retrieval.paraphrases import (
  Paraphrases,
  Sentence,
  read_paraphrases,
)
from spatial_vlm.reuse.retrieval.recall_report import (
  PRECISION,
  Query,
  calibrated,
  count,
  make_index,
  make_queries,
  recalled_by_key,
  recalled_by_rules,
  recalled_by_similarity,
  relations_table,
  summary_table,
)
from spatial_vlm.reuse.statements.captions import caption_template
from spatial_vlm.reuse.statements.masking import mask_objects

SEED, STEPS = 0, 1000
RELATIONS_PER_BATCH, OTHERS_PER_BATCH = 48, 24
VOCABULARY, TOKENS, MAX_TOKENS = 1200, 24, 64
SIZES = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
TEMPERATURE = 0.05
LEXICAL_SHARE, LEXICAL_LOSS = 0.3, 0.1
"""Weight of the lexical similarity in the ensemble, and of its own loss (M3-Embedding, section 4.1)."""
MASKED_SHARE = 0.9
"""Share of training texts without their objects' names; in the others an object was not recognized."""
FRAMES = ("{}", "{}", "{}", "{}", "In the picture, {}", "It seems that {}", "We can see that {}")
CALIBRATION_CAPTIONS = 8
"""Captions of each relation that the calibration fills its paraphrases with."""
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
    # What the words of the relations in the batch can also mean are its hard negatives.
    likely = [(f"not {r}", f"reversed {r}", f"{r} from a viewpoint") for r in relations[:12]]
    hard = [meaning for of_relation in likely for meaning in of_relation if meaning in self._others]
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
    template = frame.format(clause)
    is_masked = self._rng.random() < MASKED_SHARE
    text = _masked(template) if is_masked else template.format(X=subj, Y=obj)
    return text.rstrip(".").lower() if self._rng.random() < 0.2 else text

  def _same(self, meaning: str) -> frozenset[str]:
    for qualifier in ("", "not ", "reversed "):
      relation = meaning.removeprefix(qualifier)
      if relation in self._positives:
        return frozenset(f"{qualifier}{same}" for same in self._paraphrases.same(relation))
    return frozenset({meaning})

  def _drawn(self, values: list, count: int, replace: bool = False) -> list:
    chosen = self._rng.choice(len(values), count, replace=replace)
    return [values[i] for i in chosen]


@functools.cache
def _masked(template: str) -> str:
  return mask_objects(template.format(X="cat", Y="dog"))


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
  return total / (2 * (3 + LEXICAL_LOSS)), jnp.mean(
    jnp.argmax(ensemble, 1) == jnp.arange(len(q_mask))
  )


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
  print(f"trained in {time.monotonic() - start:.0f} s")
  calibrate(folder, vsr)


def calibrate(folder: Path, vsr: Path) -> None:
  """Writes similarity.json: the least similarity of a match, calibrated on paraphrases of train captions."""
  paraphrases, embedder = read_paraphrases(), EncoderEmbedder(str(folder))
  queries = make_queries(paraphrases, statements(vsr, "train", CALIBRATION_CAPTIONS), "calibration")
  result = {
    "min_similarity": calibrated(paraphrases, queries, embedder.similarities),
    "dense_min_similarity": calibrated(paraphrases, queries, dense(embedder)),
    "calibrated_on": f"{len(queries)} calibration paraphrases and confusable statements of VSR's train captions: the "
    f"smallest similarity from which {PRECISION:.0%} of the recalls by similarity are right, as "
    "`spatial_vlm.reuse.retrieval.recall_report.calibrated` describes",
  }
  (folder / "similarity.json").write_text(json.dumps(result, indent=2) + "\n")
  print(json.dumps(result, indent=2))


def score(folder: Path, vsr: Path) -> None:
  """Prints the tables of docs/reuse_retrieval.md: held-out paraphrases of VSR's dev captions."""
  paraphrases, embedder, lexical = (
    read_paraphrases(),
    EncoderEmbedder(str(folder)),
    LexicalEmbedder(),
  )
  floors = json.loads((folder / "similarity.json").read_text())
  captions = statements(vsr, "dev")
  queries = make_queries(paraphrases, captions, "held_out")
  relations = list(paraphrases.relations)
  floor, dense_floor = floors["min_similarity"], floors["dense_min_similarity"]

  def by_rules(embedder: Embedder, floor: float) -> list[str | None]:
    return recalled_by_rules(make_index(relations, embedder, floor), queries)

  def by(similarities, floor: float) -> list[str | None]:
    return recalled_by_similarity(relations, queries, similarities, floor)[0]

  recalled = {
    "relation key": recalled_by_key(relations, queries),
    "lexical ≥ 0.8": by(lexical.similarities, 0.8),
    f"dense ≥ {dense_floor:.2f}": by(dense(embedder), dense_floor),
    f"hybrid ≥ {floor:.2f}": by(embedder.similarities, floor),
    "key, then lexical": by_rules(lexical, 0.8),
    "key, then hybrid": by_rules(embedder, floor),
  }
  results = {name: count(paraphrases, queries, found) for name, found in recalled.items()}
  print(f"{len(captions):,} captions, {len(queries):,} questions; {platform.processor()}\n")
  print(summary_table(results), end="\n\n")
  print(unknown_relations(paraphrases, queries, embedder, floor), end="\n\n")
  print(relations_table(results))


def unknown_relations(
  paraphrases: Paraphrases, queries: list[Query], embedder: Embedder, floor: float
) -> str:
  """Returns how many paraphrases recall something from a handbook that lacks their relation."""
  asked, synonyms, wrong = 0, 0, 0
  for relation in paraphrases.relations:
    own = [q for q in queries if q.wanted == relation]
    others = [r for r in paraphrases.relations if r != relation]
    found = recalled_by_rules(make_index(others, embedder, floor), own) if own else []
    same = paraphrases.same(relation)
    asked += len(own)
    synonyms += sum(r in same for r in found if r)
    wrong += sum(r not in same for r in found if r)
  return (
    f"Of {asked:,} paraphrases whose relation the handbook lacks, {synonyms:,} recall a synonym and {wrong:,} "
    f"({wrong / asked:.1%}) another relation."
  )


def dense(embedder: Embedder):
  return lambda queries, candidates: embedder.embed(queries) @ embedder.embed(candidates).T


def statements(vsr: Path, split: str, most: int | None = None) -> list[tuple[str, str, str]]:
  """Returns relation and objects of VSR's captions, at most `most` of each relation."""
  counts, found = collections.Counter(), []
  for record in read_vsr(vsr, split):
    statement = read_statement(record.caption)
    if statement and (most is None or counts[record.relation] < most):
      counts[record.relation] += 1
      found.append((record.relation, statement[0], statement[2]))
  return found


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
  parser.add_argument("action", choices=("train", "calibrate", "score"))
  parser.add_argument("folder", type=Path)
  parser.add_argument("--vsr", type=Path, required=True)
  args = parser.parse_args()
  {"train": train, "calibrate": calibrate, "score": score}[args.action](args.folder, args.vsr)


if __name__ == "__main__":
  main()
