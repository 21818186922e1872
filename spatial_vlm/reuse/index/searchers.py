"""Nearest vectors by dot product: exact in NumPy, or by ScaNN (brute force; tree and asymmetric hashing).

A searcher is a structure over vectors that are stored elsewhere (see `vector_index`): it can be dropped and rebuilt at
any time. `launch/bench_index.py` measures the sizes and settings below.
"""

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from spatial_vlm import extras

Found = list[tuple[str, float]]
"""Ids and their dot products with a query, the largest first."""
Vectors = Float[np.ndarray, "N D"]

TREE_FROM = 20_000
"""Number of vectors from which the tree is used. Below it, brute force is exact and answers within 5 ms (of 1024
components); a tree over 20,000 vectors answers in 0.3 ms, and takes 10 s to build."""
TREE_MINIMUM = 16
"""ScaNN trains the 16 centres of a hash block on at least as many vectors."""
LEAF_SHARE = 0.2
"""Share of the √N leaves of the tree that a search reads."""
REORDERED = 100
"""Number of hashed candidates that are compared again by their exact dot products."""
_QUERIES = 64
"""Queries that NumPy compares at a time; bounds the memory of their dot products."""


class Searcher(Protocol):
  """Finds the vectors with the largest dot products. The caller checks all arguments (see `VectorIndex`)."""

  def search(self, queries: Vectors, k: int) -> list[Found]:
    """Returns the `k` nearest of each query, or all vectors where there are fewer."""
    ...

  def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
    """Adds vectors, or replaces those of known ids."""
    ...

  def delete(self, ids: Collection[str]) -> None:
    """Removes vectors."""
    ...


class ExactSearcher:
  """Compares every vector, in NumPy."""

  def __init__(self, ids: Sequence[str], vectors: Vectors):
    self._ids, self._vectors = list(ids), vectors

  def search(self, queries: Vectors, k: int) -> list[Found]:
    blocks = (queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES))
    return [found for block in blocks for found in self._search(block, min(k, len(self._ids)))]

  def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
    self.delete(frozenset(ids))
    self._ids += ids
    self._vectors = np.concatenate([self._vectors, vectors])

  def delete(self, ids: Collection[str]) -> None:
    kept = [row for row, id in enumerate(self._ids) if id not in ids]
    if len(kept) < len(self._ids):
      self._ids, self._vectors = [self._ids[row] for row in kept], self._vectors[kept]

  def _search(self, queries: Vectors, k: int) -> list[Found]:
    if k == 0:
      return [[] for _ in queries]
    distances = -(queries @ self._vectors.T)
    nearest = np.argpartition(distances, k - 1, axis=1)[:, :k]
    return [
      [(self._ids[i], -float(row[i])) for i in sorted(rows, key=lambda i: (row[i], i))]  # noqa: B023
      for row, rows in zip(distances, nearest, strict=True)
    ]


class BruteForceSearcher:
  """Compares every vector, in ScaNN, whose updates in place are exact here."""

  def __init__(self, ids: Sequence[str], vectors: Vectors):
    # ScaNN changes the list of ids that it is given, and accepts updates only if it was given one.
    self._scann = _builder(vectors).score_brute_force().build(docids=list(ids))

  def search(self, queries: Vectors, k: int) -> list[Found]:
    return _without_padding(*self._scann.search_batched(queries, final_num_neighbors=k))

  def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
    self._scann.upsert(list(ids), vectors, len(ids))

  def delete(self, ids: Collection[str]) -> None:
    self._scann.delete(list(ids))


class TreeSearcher:
  """Reads the nearest leaves of a tree, compares hashes there, and the best of them exactly (ScaNN).

  Vectors that are added after the build are searched exactly, next to the tree. Its leaves were trained without them:
  after ScaNN's own update in place, a search that reads few leaves misses vectors that resemble none of them. Adding a
  vector takes 0.002 ms this way, and 0.4 ms in place.
  """

  def __init__(self, ids: Sequence[str], vectors: Vectors):
    self._leaves = max(1, round(len(ids) ** 0.5))
    tree = _builder(vectors).tree(
      num_leaves=self._leaves,
      num_leaves_to_search=max(1, round(LEAF_SHARE * self._leaves)),
      training_sample_size=len(ids),
    )
    hashed = tree.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(REORDERED)
    self._scann = hashed.build(docids=list(ids))
    self._in_tree = set(ids)
    self._added = ExactSearcher([], vectors[:0].copy())  # a view would keep all vectors in memory

  def search(self, queries: Vectors, k: int) -> list[Found]:
    in_tree = self._search_tree(queries, k)
    short = [i for i, found in enumerate(in_tree) if len(found) < min(k, len(self._in_tree))]
    if short:  # the leaves that were read have too few vectors
      for i, found in zip(short, self._search_tree(queries[short], k, self._leaves), strict=True):
        in_tree[i] = found
    added = self._added.search(queries, k)
    return [
      sorted(a + b, key=lambda found: -found[1])[:k] for a, b in zip(in_tree, added, strict=True)
    ]

  def upsert(self, ids: Sequence[str], vectors: Vectors) -> None:
    self._delete_from_tree(ids)
    self._added.upsert(ids, vectors)

  def delete(self, ids: Collection[str]) -> None:
    self._delete_from_tree(ids)
    self._added.delete(ids)

  def _search_tree(self, queries: Vectors, k: int, leaves: int | None = None) -> list[Found]:
    if not self._in_tree:  # ScaNN fails
      return [[] for _ in queries]
    found = self._scann.search_batched(
      queries,
      final_num_neighbors=k,
      pre_reorder_num_neighbors=max(k, REORDERED),
      leaves_to_search=leaves,
    )
    return _without_padding(*found)

  def _delete_from_tree(self, ids: Iterable[str]) -> None:
    if known := [id for id in ids if id in self._in_tree]:
      self._scann.delete(known)
      self._in_tree.difference_update(known)


SEARCHERS: Mapping[str, Callable[[Sequence[str], Vectors], Searcher]] = MappingProxyType(
  {"exact": ExactSearcher, "brute force": BruteForceSearcher, "tree": TreeSearcher}
)
"""Name → constructor from ids and vectors."""


def choose_searcher(size: int) -> str:
  """Returns the name of the searcher for that many vectors: exact search where ScaNN is not installed."""
  large = size >= max(TREE_FROM, TREE_MINIMUM)
  if not extras.is_installed("scann"):
    if large:
      logging.warning(
        "searching %d vectors exactly, which is slow; ScaNN is faster (Linux only): %s",
        size,
        extras.install_line("reuse"),
      )
    return "exact"
  return "tree" if large else "brute force"


def _without_padding(
  ids: Sequence[Sequence[str]], similarities: Sequence[Sequence[float]]
) -> list[Found]:
  """Returns the results without ScaNN's padding: it fills a short row with the first id and a similarity of NaN."""
  return [
    [(id, float(s)) for id, s in zip(*row, strict=True) if not np.isnan(s)]
    for row in zip(ids, similarities, strict=True)
  ]


def _builder(vectors: Vectors) -> Any:
  return import_scann().scann_ops_pybind.builder(vectors, 1, "dot_product")


def import_scann() -> Any:
  """Imports ScaNN without TensorFlow.

  ScaNN's optional TensorFlow ops load with one version of TensorFlow only; with any other, importing ScaNN fails. The
  searchers used here need none of them.
  """
  if "scann" in sys.modules:
    return sys.modules["scann"]
  tensorflow = sys.modules.get("tensorflow")
  sys.modules["tensorflow"] = None  # pyright: ignore[reportArgumentType]  # documented: makes its import fail
  try:
    import scann
  finally:
    del sys.modules["tensorflow"]
    if tensorflow is not None:
      sys.modules["tensorflow"] = tensorflow
  return scann
