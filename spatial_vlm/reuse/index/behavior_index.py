"""A searchable index of a handbook: object-masked questions → behaviors.

The questions of all behaviors are the ids of a `VectorIndex`, which is saved together with the handbook.
"""

import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from etils import epath
from jaxtyping import Float

from spatial_vlm.evaluation.results import RecallCount
from spatial_vlm.reuse.embedding.embedder import Embedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook, HandbookError
from spatial_vlm.reuse.index.vector_index import VectorIndex

Match = tuple[Behavior, float]
"""A behavior and the similarity of its question to the one asked."""

PROPOSED = 32
"""Least number of questions that the search by dense vectors proposes; `Embedder.similarities` orders them."""
_UNIT_TOLERANCE = 1e-3
_ROUNDING = 1e-5
"""Rounding tolerance of self-similarity: with `min_similarity = 1`, exactly the known questions match."""
_ATTRIBUTES = {"embedder": str, "min_similarity": float, "handbook": dict}


class BehaviorIndex:
  """Finds behaviors by the similarity of the questions that they answer; threads may share it.

  Args:
    handbook: the behaviors; its limits hold for the index too.
    embedder: makes the vectors, once those of the behaviors' questions and that of each new question, and scores the
      questions that their search proposes.
    min_similarity: least similarity of a match, in −1…1. Unrelated English sentences have about 0.35 under BGE-M3
      and 0 under the lexical embedder. A question without a match recalls nothing.
  """

  def __init__(self, handbook: Handbook, embedder: Embedder, min_similarity: float):
    if not -1 <= min_similarity <= 1:
      raise ValueError(f"min_similarity is {min_similarity}; it is a cosine, from -1 to 1")
    self._embedder = embedder
    self._min_similarity = float(min_similarity)
    self._fingerprint = embedder.fingerprint
    self._lock = threading.RLock()
    self._vectors = VectorIndex(np.shape(embedder.embed([]))[1])
    self._set(handbook)

  @property
  def handbook(self) -> Handbook:
    return self._handbook

  @property
  def vectors(self) -> Float[np.ndarray, "N D"]:
    """One row for each question of each behavior, in the handbook's order."""
    rows = [self._vectors[question] for b in self._handbook.behaviors for question in b.questions]
    return np.stack(rows) if rows else np.zeros((0, self._vectors.width), np.float32)

  @property
  def origin(self) -> dict[str, str]:
    """What a recall depends on: the embedder, the least similarity, and a digest of each behavior, in their order."""
    digests = {b.name: _digest(b) for b in self._handbook.behaviors}
    return {
      "embedder": self._fingerprint,
      "min_similarity": str(self._min_similarity),
      **digests,
    }

  def upsert(
    self, behaviors: Iterable[Behavior], recalls: Mapping[str, RecallCount] = MappingProxyType({})
  ) -> None:
    """Adds or merges behaviors (see `Handbook.upsert`); nothing changes when one cannot be embedded."""
    with self._lock:
      self._set(self._handbook.upsert(behaviors, recalls))

  def with_handbook(self, handbook: Handbook, min_similarity: float | None = None) -> Self:
    """Returns an index of another handbook, by default with the same floor; known questions keep their vectors."""
    floor = self._min_similarity if min_similarity is None else min_similarity
    other = type(self)(Handbook(handbook.max_entries, handbook.max_tokens), self._embedder, floor)
    with self._lock:
      if known := self._vectors.ids:
        other._vectors.upsert(known, np.stack([self._vectors[id] for id in known]))
    other._set(handbook)
    return other

  def search(
    self, questions: Sequence[str], k: int, min_similarity: float | None = None
  ) -> list[list[Match]]:
    """Returns up to `k` matches for each object-masked question, the most similar first.

    `min_similarity` takes the place of the index's own.

    A question that a behavior was extracted for is looked up without embedding it again. The list is empty where
    nothing is similar enough: the full chain is then asked for.
    """
    if k < 1:
      raise ValueError(f"a search returns at least one behavior; got k={k}")
    with self._lock:
      if not questions or not self._owners:
        return [[] for _ in questions]
      new = [q for q in dict.fromkeys(questions) if q not in self._vectors]
      known = dict(zip(new, self._embed(new), strict=True))
      queries = np.stack([known[q] if q in known else self._vectors[q] for q in questions])
      # Among this many questions there are k behaviors, since none has more than `longest`.
      longest = max(len(b.questions) for b in self._handbook.behaviors)
      proposed = self._vectors.search(queries, max((k - 1) * longest + 1, PROPOSED))
      floor = self._min_similarity if min_similarity is None else min_similarity
      return self._scored(questions, [[id for id, _ in found] for found in proposed], k, floor)

  def forget_questions(self) -> None:
    """Drops cached encodings of questions that were searched for; those of the behaviors' questions stay."""
    with self._lock:
      self._embedder.clear(keep=self._owners)
      self._embedder.embed(list(self._owners))

  def save(
    self, folder: epath.PathLike, attributes: Mapping[str, Any] = MappingProxyType({})
  ) -> None:
    """Saves the vectors and, in the same manifest, the handbook and other attributes; see `VectorIndex.save`."""
    with self._lock:
      own = {
        "embedder": self._fingerprint,
        "min_similarity": self._min_similarity,
        "handbook": self._handbook.to_json(),
      }
      self._vectors.save(folder, {**attributes, **own})

  @classmethod
  def load(cls, folder: epath.PathLike, embedder: Embedder) -> Self:
    """Reads the newest complete save.

    Raises:
      IndexFileError: the folder has none, or it is damaged.
      HandbookError: it was made with another embedder, or its handbook cannot be read.
    """
    vectors = VectorIndex.load(folder)
    attributes = vectors.attributes
    for field, kind in _ATTRIBUTES.items():
      if not isinstance(attributes.get(field), kind):
        raise HandbookError(
          f"{folder}: {field}: expected {kind.__name__}, found {attributes.get(field)!r}; this index has no behaviors"
        )
    if attributes["embedder"] != embedder.fingerprint:
      raise HandbookError(
        f"{folder}: the vectors were made by embedder {attributes['embedder']}, given is {embedder.fingerprint}; their "
        "similarities mean nothing. Load with the first, or run `behaviors` again"
      )
    handbook = Handbook.from_json(attributes["handbook"], f"{folder}: handbook")
    empty = Handbook(handbook.max_entries, handbook.max_tokens)
    self = cls(empty, embedder, attributes["min_similarity"])
    self._vectors = vectors
    self._set(handbook)
    return self

  def _set(self, handbook: Handbook) -> None:
    owners = {question: b for b in handbook.behaviors for question in b.questions}
    new = [question for question in owners if question not in self._vectors]
    vectors = self._embed(new)
    self._vectors.upsert(new, vectors)
    self._vectors.delete([id for id in self._vectors.ids if id not in owners])
    self._handbook, self._owners = handbook, owners

  def _embed(self, questions: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Embeds questions; raises ValueError for one whose vector is not finite and of length 1 or 0."""
    vectors = np.asarray(self._embedder.embed(questions), np.float32)
    if vectors.shape != (len(questions), self._vectors.width):
      raise ValueError(
        f"embedder {self._fingerprint} gave an array of shape {vectors.shape} for {len(questions)} questions "
        f"next to vectors of width {self._vectors.width}; one row of that width per question is needed"
      )
    lengths = np.linalg.norm(vectors, axis=1)
    good = (np.abs(lengths - 1) < _UNIT_TOLERANCE) | (lengths == 0)
    if not good.all():
      bad = int(np.argmin(good))
      raise ValueError(
        f"embedder {self._fingerprint} gave {questions[bad]!r} a vector of length {lengths[bad]}; it must be 1, or 0 "
        "for a text that it cannot read"
      )
    return vectors

  def _scored(
    self, questions: Sequence[str], proposed: Sequence[Sequence[str]], k: int, floor: float
  ) -> list[list[Match]]:
    """Returns the best `k` behaviors of the proposed questions by the embedder's final similarity."""
    asked = {question: row for row, question in enumerate(dict.fromkeys(questions))}
    candidates = {id: column for column, id in enumerate(dict.fromkeys(itertools.chain(*proposed)))}
    scores = self._embedder.similarities(list(asked), list(candidates))
    found = []
    for question, ids in zip(questions, proposed, strict=True):
      row = scores[asked[question]]
      matches: dict[str, Match] = {}
      for id in sorted(ids, key=lambda id: -row[candidates[id]]):  # noqa: B023
        if row[candidates[id]] >= floor - _ROUNDING:
          matches.setdefault(self._owners[id].name, (self._owners[id], float(row[candidates[id]])))
      found.append(list(matches.values())[:k])
    return found


def _digest(behavior: Behavior) -> str:
  content = json.dumps(dataclasses.asdict(behavior), sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:16]
