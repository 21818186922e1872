"""A searchable index of a handbook: object-masked questions → behaviors, by ScaNN.

The handbook and its vectors are stored; ScaNN's searcher is built from them and dropped whenever they change. Building
takes milliseconds at the size of a handbook (ScaNN's guide recommends brute force below 20,000 vectors). ScaNN's own
incremental updates are not used: one of wrong width or with an unknown id would corrupt its bookkeeping.
"""

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from etils import epath
from jaxtyping import Float

from spatial_vlm.evaluation.results import RecallCount
from spatial_vlm.reuse.behaviors import Behavior, Handbook, HandbookError, read_json
from spatial_vlm.reuse.embedder import Embedder

Match = tuple[Behavior, float]
"""A behavior and the cosine similarity of its question to the one asked."""

_UNIT_TOLERANCE = 1e-3
_ROUNDING = 1e-5
"""Rounding tolerance of self-similarity: with `min_similarity = 1`, exactly the known questions match."""


class BehaviorIndex:
  """Finds behaviors by the similarity of the questions that they answer.

  Args:
    handbook: the behaviors; its limits hold for the index too.
    embedder: makes the vectors: once those of the behaviors' questions, and that of each new question.
    min_similarity: least similarity of a match, in −1…1. Unrelated English sentences have about 0.35 under BGE-M3
      and 0 under the lexical embedder. A question without a match recalls nothing.
  """

  def __init__(self, handbook: Handbook, embedder: Embedder, min_similarity: float):
    if not -1 <= min_similarity <= 1:
      raise ValueError(f"min_similarity is {min_similarity}; it is a cosine, from -1 to 1")
    self._embedder = embedder
    self._min_similarity = float(min_similarity)
    self._fingerprint = embedder.fingerprint
    self._vectors: dict[str, np.ndarray] = {}
    self._set(handbook)

  @property
  def handbook(self) -> Handbook:
    return self._handbook

  @property
  def vectors(self) -> Float[np.ndarray, "N D"]:
    """One row for each question of each behavior, in the handbook's order."""
    rows = [self._vectors[question] for question, _ in self._rows]
    return np.stack(rows) if rows else self._embed([])

  def upsert(
    self, behaviors: Iterable[Behavior], recalls: Mapping[str, RecallCount] = MappingProxyType({})
  ) -> None:
    """Adds or merges behaviors (see `Handbook.upsert`); nothing changes when one cannot be embedded."""
    self._set(self._handbook.upsert(behaviors, recalls))

  def search(self, questions: Sequence[str], k: int) -> list[list[Match]]:
    """Returns up to `k` matches for each object-masked question, the most similar first.

    A question that a behavior was extracted for is looked up without embedding it again. The list is empty where
    nothing is similar enough: the full chain is then asked for.
    """
    if k < 1:
      raise ValueError(f"a search returns at least one behavior; got k={k}")
    if not questions or not self._rows:
      return [[] for _ in questions]
    new = [q for q in dict.fromkeys(questions) if q not in self._vectors]
    known = self._vectors | dict(zip(new, self._embed(new), strict=True))
    queries = np.stack([known[question] for question in questions])
    # Several rows may belong to one behavior, which counts once: ask for as many more rows as that could cost.
    neighbors = min(len(self._rows), k + len(self._rows) - len(self._handbook))
    rows, similarities = self._searcher().search_batched(queries, final_num_neighbors=neighbors)
    return [self._matches(*found, k) for found in zip(rows, similarities, strict=True)]

  def save(self, folder: epath.PathLike) -> None:
    """Writes vectors.npy, then index.json with the hash of the vectors, by which `load` notices a torn write."""
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = io.BytesIO()
    np.save(vectors, self.vectors, allow_pickle=False)
    (folder / "vectors.npy").write_bytes(vectors.getvalue())
    index = {
      "embedder": self._fingerprint,
      "min_similarity": self._min_similarity,
      "vectors_sha256": hashlib.sha256(vectors.getvalue()).hexdigest(),
      "handbook": self._handbook.to_json(),
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n")

  @classmethod
  def load(cls, folder: epath.PathLike, embedder: Embedder) -> Self:
    """Reads what `save` wrote; raises HandbookError when it is damaged or was made with another embedder."""
    path = epath.Path(folder) / "index.json"
    index = _checked(read_json(path), path)
    if index["embedder"] != embedder.fingerprint:
      raise HandbookError(
        f"{path}: the vectors were made by embedder {index['embedder']}, given is {embedder.fingerprint}; their "
        "similarities mean nothing. Load with the first, or run `behaviors` again"
      )
    handbook = Handbook.from_json(index["handbook"], f"{path}: handbook")
    stored = (path.parent / "vectors.npy").read_bytes()
    if hashlib.sha256(stored).hexdigest() != index["vectors_sha256"]:
      raise HandbookError(
        f"{path.parent / 'vectors.npy'}: is not the file that index.json was written with; save the index again"
      )
    vectors = np.load(io.BytesIO(stored), allow_pickle=False)
    questions = [question for behavior in handbook.behaviors for question in behavior.questions]
    if len(vectors) != len(questions):
      raise HandbookError(
        f"{path}: {len(vectors)} vectors for {len(questions)} questions; save the index again"
      )
    self = cls(
      Handbook(handbook.max_entries, handbook.max_tokens), embedder, index["min_similarity"]
    )
    self._vectors = dict(zip(questions, vectors, strict=True))
    self._set(handbook)
    return self

  def _set(self, handbook: Handbook) -> None:
    rows = [
      (question, behavior) for behavior in handbook.behaviors for question in behavior.questions
    ]
    new = [question for question, _ in rows if question not in self._vectors]
    vectors = self._vectors | dict(zip(new, self._embed(new), strict=True))
    self._vectors = {question: vectors[question] for question, _ in rows}
    self._handbook, self._rows, self._built = handbook, rows, None

  def _embed(self, questions: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Embeds questions; raises ValueError for one whose vector is not finite and of length 1 or 0."""
    vectors = np.asarray(self._embedder.embed(questions), np.float32)
    width = {len(vector) for vector in self._vectors.values()}
    if (
      vectors.ndim != 2 or len(vectors) != len(questions) or (width and {vectors.shape[1]} != width)
    ):
      raise ValueError(
        f"embedder {self._fingerprint} gave an array of shape {vectors.shape} for {len(questions)} questions "
        f"next to vectors of width {sorted(width)}; one row of that width per question is needed"
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

  def _searcher(self) -> Any:
    if self._built is None:
      builder = _import_scann().scann_ops_pybind.builder(
        self.vectors, len(self._rows), "dot_product"
      )
      self._built = builder.score_brute_force().build()
    return self._built

  def _matches(self, rows: Sequence[int], similarities: Sequence[float], k: int) -> list[Match]:
    matches: dict[str, Match] = {}
    for row, similarity in zip(rows, similarities, strict=True):
      # ScaNN pads a short result with row 0 and a similarity of NaN, which passes no comparison.
      if similarity >= self._min_similarity - _ROUNDING:
        behavior = self._rows[row][1]
        matches.setdefault(behavior.name, (behavior, float(similarity)))
    return list(matches.values())[:k]


def _checked(index: Any, path: epath.Path) -> dict[str, Any]:
  fields = {"embedder": str, "min_similarity": float, "vectors_sha256": str, "handbook": dict}
  if not isinstance(index, dict) or index.keys() != fields.keys():
    raise HandbookError(f"{path}: expected the fields {sorted(fields)}; save the index again")
  for field, kind in fields.items():
    if not isinstance(index[field], kind):
      raise HandbookError(
        f"{path}: {field}: expected {kind.__name__}, found {index[field]!r}; save the index again"
      )
  return index


def _import_scann() -> Any:
  """Imports ScaNN without TensorFlow.

  ScaNN's optional TensorFlow ops load with one version of TensorFlow only; with any other, importing ScaNN fails. The
  searcher used here needs none of them.
  """
  tensorflow = sys.modules.get("tensorflow")
  sys.modules["tensorflow"] = None  # pyright: ignore[reportArgumentType]  # documented: makes its import fail
  try:
    import scann
  except ImportError as error:
    raise ImportError(
      "retrieving behaviors needs ScaNN; install spatial-vlm[reuse] (Linux only)"
    ) from error
  finally:
    del sys.modules["tensorflow"]
    if tensorflow is not None:
      sys.modules["tensorflow"] = tensorflow
  return scann
