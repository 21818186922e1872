"""Embeds questions by BGE-M3, or another XLM-RoBERTa encoder with its three heads.

Chen et al., M3-Embedding (arXiv 2402.03216): a dense vector, a weight for each token of the vocabulary, and a vector
for each token of the text. The search uses the dense vectors; `similarities` combines all three.
"""

import collections
import hashlib
import json
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from jax import numpy as jnp
from jaxtyping import Float
from scipy.sparse import csr_array

from spatial_vlm import sharding
from spatial_vlm.config import UsageError
from spatial_vlm.huggingface.encoder_folder import (
  encoder_shapes,
  open_encoder,
  read_encoder_config,
)
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.jsonl import read_object
from spatial_vlm.model.xlm_roberta import encode
from spatial_vlm.parameters.partition import checksums
from spatial_vlm.processor.encoder_tokenizer import load_encoder_tokenizer
from spatial_vlm.text import short_line

log = logging.getLogger(__name__)

DENSE, LEXICAL, VECTORS = WEIGHTS = (0.4, 0.2, 0.4)
"""Shares of the three similarities in the final one: `weights_for_different_modes` of FlagEmbedding's example
(https://huggingface.co/BAAI/bge-m3, "Compute score for text pairs")."""
SIMILARITY_FILE = "similarity.json"
UNCALIBRATED_MIN_SIMILARITY = 0.8
"""Least similarity of a match where the folder has no SIMILARITY_FILE, as BGE-M3 is published. It is not calibrated and
high on purpose: a question without a match gets the full chain, a wrong match the wrong procedure."""
ROWS, FEWEST_TOKENS, MOST_TOKENS = (1, 4, 16, 64), 16, 8192
"""Rows of a batch; shortest padded row; tokens of a batch. Rows are padded to powers of two, so that at most
4 · log₂(8192 / 8) = 40 programs compile, however many texts there are."""
CACHED_TOKENS = 1 << 16
"""Tokens of the texts whose encodings are kept: 256 MB at BGE-M3's width."""


class TextEncoding(NamedTuple):
  """The representations of one text."""

  dense: Float[np.ndarray, "D"]
  lexical: dict[int, float]
  """Token → its largest weight, over the length of all weights."""
  vectors: Float[np.ndarray, "T D"]


class EncoderEmbedder:
  """An `Embedder` by the encoder of a Hugging Face folder (see `huggingface.encoder_folder`), on one local device.

  The folder's `similarity.json`, {"min_similarity": 0.6, "calibrated_on": "…"}, gives the least similarity of a match;
  UNCALIBRATED_MIN_SIMILARITY stands in for it.

  Args:
    folder: local, remote (gs://) or relative to the project.
    dtype: type of weights and activations, "float32" or "bfloat16".

  Raises:
    UsageError: the folder does not exist, or its files are missing, damaged or do not belong together.
    ImportError: its tokenizer needs TensorFlow Text, which is not installed.
  """

  def __init__(self, folder: str, dtype: str = "float32"):
    path = find_folder(folder, "an XLM-RoBERTa encoder, or 'lexical'")
    try:
      self._config = read_encoder_config(path)
      self._tokenizer = load_encoder_tokenizer(path, self._config)
      shapes = encoder_shapes(self._config, jnp.dtype(dtype))
      self._mesh = sharding.make_mesh({}, devices=jax.local_devices()[:1])
      placed = sharding.with_param_shardings(self._mesh, shapes)
      self._params = open_encoder(path, self._config).read(placed)
      self.min_similarity = read_min_similarity(path)
    except (FileNotFoundError, ValueError) as error:
      raise UsageError(f"embedder {folder}: {error}") from error
    self.fingerprint = self._hash()
    self._lock = threading.Lock()
    self._cache: collections.OrderedDict[str, TextEncoding] = collections.OrderedDict()

  def _hash(self) -> str:
    """Returns the hash of the weights in the type that they are used in, the tokenizer and WEIGHTS."""
    with jax.set_mesh(self._mesh):  # the caller's may have more devices
      weights = checksums(self._params)
    parts = [weights, self._tokenizer.fingerprint, WEIGHTS, self._config.max_tokens]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    return f"encoder-{digest.hexdigest()[:16]}"

  def clear(self, keep: Collection[str] = ()) -> None:
    """Drops the cached encodings of all texts but those to keep."""
    with self._lock:
      for text in self._cache.keys() - set(keep):
        del self._cache[text]

  def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Returns the dense vectors, float32."""
    encodings = self._encodings(texts)
    rows = [encodings[text].dense for text in texts]
    return np.stack(rows) if rows else np.zeros((0, self._config.hidden_size), np.float32)

  def similarities(
    self, queries: Sequence[str], candidates: Sequence[str]
  ) -> Float[np.ndarray, "Q C"]:
    """Returns 0.4 · dense + 0.2 · lexical + 0.4 · vectors for all pairs, from −1 to 1; equal texts have 1.

      dense    e_q · e_c
      lexical  Σ_t w_q(t) w_c(t) over shared tokens, each text's weights scaled to length 1 (published without)
      vectors  the mean over the query's tokens of the largest dot product with one of the candidate's

    Where one of the texts has no token with a weight, the dense similarity stands in for the lexical one.
    """
    encodings = self._encodings([*queries, *candidates])
    rows, columns = ([encodings[t] for t in texts] for texts in (queries, candidates))
    if not rows or not columns:
      return np.zeros((len(rows), len(columns)), np.float32)
    dense = np.stack([row.dense for row in rows]) @ np.stack([c.dense for c in columns]).T
    lexical = _lexical_similarities(rows, columns, otherwise=dense)
    total = DENSE * dense + LEXICAL * lexical + VECTORS * _vector_similarities(rows, columns)
    return np.clip(total, -1, 1).astype(np.float32)

  def _encodings(self, texts: Sequence[str]) -> dict[str, TextEncoding]:
    """Returns the encoding of each text, from the cache where it has been encoded before; threads take turns."""
    with self._lock:
      return self._encodings_locked(texts)

  def _encodings_locked(self, texts: Sequence[str]) -> dict[str, TextEncoding]:
    found = {text: self._cache[text] for text in texts if text in self._cache}
    new = [text for text in dict.fromkeys(texts) if text not in found]
    rows = self._tokenizer.encode(new, self._config.max_tokens)
    for batch, length in batches([len(row) for row in rows], self._config.max_tokens):
      encoded = self._encode_rows([rows[number] for number in batch], length)
      found |= {new[number]: encoding for number, encoding in zip(batch, encoded, strict=True)}
    for text in dict.fromkeys(texts):
      self._cache[text] = found[text]
      self._cache.move_to_end(text)
    kept = sum(len(encoding.vectors) for encoding in self._cache.values())
    while kept > CACHED_TOKENS:
      kept -= len(self._cache.popitem(last=False)[1].vectors)
    return found

  def _encode_rows(self, rows: Sequence[list[int]], length: int) -> list[TextEncoding]:
    tokens = np.full((len(rows), length), self._config.pad_token_id, np.int32)
    for padded, row in zip(tokens, rows, strict=True):
      padded[: len(row)] = row
    mask = np.arange(length)[None] < np.array([[len(row)] for row in rows])
    with jax.set_mesh(self._mesh):
      found = jax.device_get(_encode(self._params, self._config, tokens, mask))
    return [
      TextEncoding(
        found.dense[i], _weights(row, found.lexical[i]), found.vectors[i, 1 : len(row)].copy()
      )
      for i, row in enumerate(rows)
    ]


_encode = jax.jit(encode, static_argnums=1)


def batches(lengths: Sequence[int], longest: int) -> Iterator[tuple[list[int], int]]:
  """Yields (numbers of rows, their padded length), each row once, rows of similar length together.

  >>> list(batches([5, 40, 7, 3, 12, 9], longest=50))
  [([0, 2, 3, 4], 16), ([5], 16), ([1], 50)]
  """
  of_length: dict[int, list[int]] = collections.defaultdict(list)
  for number, length in enumerate(lengths):
    padded = max(FEWEST_TOKENS, 1 << (length - 1).bit_length())
    of_length[min(padded, longest)].append(number)
  for length, numbers in sorted(of_length.items()):
    while numbers:
      most = max(1, min(len(numbers), MOST_TOKENS // length))
      count = max(rows for rows in ROWS if rows <= most)
      yield numbers[:count], length
      numbers = numbers[count:]


def _weights(row: Sequence[int], weights: Float[np.ndarray, "T"]) -> dict[int, float]:
  largest: dict[int, float] = {}
  for token, weight in zip(row, weights.tolist(), strict=False):
    if weight > 0:
      largest[token] = max(weight, largest.get(token, 0.0))
  length = sum(weight * weight for weight in largest.values()) ** 0.5
  return {token: weight / length for token, weight in largest.items()}


def _lexical_similarities(
  queries: Sequence[TextEncoding],
  candidates: Sequence[TextEncoding],
  otherwise: Float[np.ndarray, "Q C"],
) -> Float[np.ndarray, "Q C"]:
  tokens = sorted({token for text in (*queries, *candidates) for token in text.lexical})
  columns = {token: column for column, token in enumerate(tokens)}

  def matrix(texts: Sequence[TextEncoding]) -> csr_array:
    lengths = [len(text.lexical) for text in texts]
    of_token = np.array([columns[token] for text in texts for token in text.lexical], np.int32)
    weights = [weight for text in texts for weight in text.lexical.values()]
    shape = (len(texts), max(len(columns), 1))
    return csr_array((weights, of_token, np.cumsum([0, *lengths])), shape, dtype=np.float32)

  products = (matrix(queries) @ matrix(candidates).T).toarray()
  have = [np.array([bool(text.lexical) for text in texts]) for texts in (queries, candidates)]
  return np.where(np.logical_and.outer(*have), products, otherwise)


def _vector_similarities(
  queries: Sequence[TextEncoding], candidates: Sequence[TextEncoding]
) -> Float[np.ndarray, "Q C"]:
  vectors = np.concatenate([c.vectors for c in candidates])
  starts = np.cumsum([0, *(len(c.vectors) for c in candidates[:-1])])
  rows = [
    np.maximum.reduceat(query.vectors @ vectors.T, starts, axis=1).mean(axis=0) for query in queries
  ]
  return np.stack(rows)


def read_min_similarity(folder: epath.Path) -> float:
  """Returns the least similarity in a folder's `similarity.json`; UNCALIBRATED_MIN_SIMILARITY without the file.

  Raises:
    ValueError: the file cannot be read, or its number is not a similarity.
  """
  file = folder / SIMILARITY_FILE
  if not file.is_file():
    log.warning(
      "%s has no %s: matches need the similarity %s, which is not calibrated",
      *(folder, SIMILARITY_FILE, UNCALIBRATED_MIN_SIMILARITY),
    )
    return UNCALIBRATED_MIN_SIMILARITY
  try:
    value = read_object(file)["min_similarity"]
  except (ValueError, KeyError) as error:
    raise ValueError(
      f"{file} has no min_similarity ({short_line(repr(error))}); calibrate the encoder again"
    ) from error
  if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
    raise ValueError(f"{file}: min_similarity is {value!r}; it is a similarity, from -1 to 1")
  return float(value)
