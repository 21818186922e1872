"""Object-masked questions as vectors whose dot product is their similarity."""

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import HashingVectorizer

_PROBES = ("The X is left of the Y.", "The X is right of the Y.", "The X contains the Y.")


class Embedder(Protocol):
  """Turns object-masked questions into vectors whose dot product is their similarity."""

  @property
  def fingerprint(self) -> str:
    """Equal for two embedders only where their vectors can be compared."""
    ...

  def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """One row of length 1 per text, float32."""
    ...


class LexicalEmbedder:
  """Hashed words and word pairs of a question: alike means that the same words are used, no more.

  "left of" and "to the left of" are alike, "under" and "beneath" are not: a dense model (BGE-M3) knows that, this
  one says honestly 0 and leaves the question to the full chain. Nothing is learnt and nothing is stored, so that a
  question has the same vector in every run. The words which the grammar gives to every masked question carry no
  meaning and are left out; a text of nothing else is the zero vector, which is like nothing.
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

  @property
  def fingerprint(self) -> str:
    """Hash of the settings and of the vectors that they give to three questions."""
    digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode())
    digest.update(np.round(self.embed(_PROBES) * 1000).astype(np.int32).tobytes())
    return f"lexical-{digest.hexdigest()[:16]}"

  def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Rows of length 1 (0 for a text without any telling word), float32."""
    if not texts:
      return np.zeros((0, self._settings["n_features"]), np.float32)
    counts = self._vectorizer.transform(list(texts))
    return counts.toarray().astype(np.float32)  # pyright: ignore[reportAttributeAccessIssue]
