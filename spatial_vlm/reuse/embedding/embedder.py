"""Embedders: object-masked questions as vectors, and the similarity of two questions."""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import HashingVectorizer

from spatial_vlm.reuse.embedding.encoder_embedder import EncoderEmbedder

_PROBES = ("The X is left of the Y.", "The X is right of the Y.", "The X contains the Y.")


LEXICAL = "lexical"
"""Name of the embedder without weights."""
LEXICAL_MIN_SIMILARITY = 0.8
"""Without a false match on VSR's captions; few paraphrases reach it."""


class Embedder(Protocol):
  """Embeds object-masked questions for the search, and scores the questions that the search proposes."""

  @property
  def fingerprint(self) -> str:
    """Names the vector space: equal for two embedders only if their vectors can be compared."""
    ...

  @property
  def min_similarity(self) -> float:
    """Least value of `similarities` of a match, calibrated for this embedder."""
    ...

  def clear(self, keep: Collection[str] = ()) -> None:
    """Drops cached encodings of all texts but those to keep."""
    ...

  def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Returns one dense vector of length 1 (or 0, for a text that it cannot read) per text, float32."""
    ...

  def similarities(
    self, queries: Sequence[str], candidates: Sequence[str]
  ) -> Float[np.ndarray, "Q C"]:
    """Returns the final scores of all pairs, from −1 to 1, float32; equal texts have 1."""
    ...


class LexicalEmbedder:
  """Embeds a question as hashed words and word pairs: questions are similar if they share words.

  "left of" and "to the left of" are similar; "under" and "beneath" have similarity 0, which a dense model (BGE-M3)
  would not give them, and the question then gets the full chain. Nothing is trained or stored, so that a question has
  the same vector in every run. Words that the grammar gives to every masked question are ignored; a text without any
  other word is the zero vector, which is similar to nothing.
  """

  def __init__(self, width: int = 1024):
    self._settings = {
      "n_features": width,
      "ngram_range": (1, 2),
      "token_pattern": r"\w+",
      "stop_words": ["the", "is", "x", "y"],
      "norm": "l2",
    }
    self._vectorizer = HashingVectorizer(**self._settings)

  min_similarity = LEXICAL_MIN_SIMILARITY

  def clear(self, keep: Collection[str] = ()) -> None:
    """Does nothing: no encoding is cached."""

  @property
  def fingerprint(self) -> str:
    """Hash of the settings and of the vectors of three questions."""
    digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode())
    digest.update(np.round(self.embed(_PROBES) * 1000).astype(np.int32).tobytes())
    return f"lexical-{digest.hexdigest()[:16]}"

  def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Returns rows of length 1 (0 for a text whose words are all ignored), float32."""
    if not texts:
      return np.zeros((0, self._settings["n_features"]), np.float32)
    counts = self._vectorizer.transform(list(texts))
    return counts.toarray().astype(np.float32)  # pyright: ignore[reportAttributeAccessIssue]

  def similarities(
    self, queries: Sequence[str], candidates: Sequence[str]
  ) -> Float[np.ndarray, "Q C"]:
    """Returns the dot products of the vectors, from 0 to 1, float32."""
    return self.embed(queries) @ self.embed(candidates).T


def load_embedder(name: str, dtype: str = "float32") -> Embedder:
  """Returns the embedder that a config names: LEXICAL, or the folder of an encoder, whose weights get `dtype`.

  Raises:
    UsageError: the name is neither, or the folder cannot be read.
    ImportError: the folder's tokenizer needs TensorFlow Text, which is not installed.
  """
  return LexicalEmbedder() if name == LEXICAL else EncoderEmbedder(name, dtype)
