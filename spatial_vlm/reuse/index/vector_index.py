"""Vectors by id, searched by dot product: a store on disk that any kill leaves readable, and a searcher over it.

The stored vectors are the truth. The searcher (see `searchers`) is chosen by their number, built at the first search,
updated in place, and rebuilt when a tenth of the vectors has changed since; after any error it is dropped. ScaNN's own
files are not used: they contain pickled ids and absolute paths.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from spatial_vlm.reuse.index import vector_files
from spatial_vlm.reuse.index.searchers import SEARCHERS, Found, Searcher, Vectors, choose_searcher
from spatial_vlm.reuse.index.vector_files import Changes, IndexFileError, Saved

REBUILD_SHARE = 0.1
"""Share of the vectors whose change makes the next search rebuild the searcher.

Building a tree over 10⁵ vectors takes 45 s; searching as many as 10⁴ added vectors exactly takes 3 ms a query.
"""
MAX_SEGMENTS = 16
"""Segments of a save; the next save compacts them into one."""


class VectorIndex:
  """Stores vectors of one width under text ids and finds those nearest to a query; threads may share it.

  Arguments are checked before anything changes.
  """

  def __init__(self, width: int):
    if width < 1:
      raise ValueError(f"width is {width}; vectors have at least one component")
    self._width = width
    self._vectors: dict[str, np.ndarray] = {}
    self._lock = threading.RLock()
    self._searcher: Searcher | None = None
    self._built_size, self._changed = 0, 0
    self._saved: Saved | None = None
    self._unsaved: set[str] = set()
    self._attributes: Mapping[str, Any] = MappingProxyType({})

  def __len__(self) -> int:
    return len(self._vectors)

  def __contains__(self, id: str) -> bool:
    return id in self._vectors

  def __getitem__(self, id: str) -> np.ndarray:
    return self._vectors[id]

  @property
  def width(self) -> int:
    """Number of components of a vector."""
    return self._width

  @property
  def ids(self) -> list[str]:
    """Ids in the order in which they were added."""
    return list(self._vectors)

  @property
  def attributes(self) -> Mapping[str, Any]:
    """JSON values that were saved with the vectors; empty before the first `save`."""
    return self._attributes

  def upsert(self, ids: Sequence[str], vectors: ArrayLike) -> None:
    """Adds vectors, or replaces those of known ids.

    Raises ValueError for ids that repeat, another number or width of vectors, or a value that is not finite.
    """
    ids, vectors = list(ids), self._checked(vectors, "vectors")
    if len(vectors) != len(ids):
      raise ValueError(f"{len(ids)} ids and {len(vectors)} vectors; give one vector per id")
    if repeated := [id for id, count in Counter(ids).items() if count > 1]:
      raise ValueError(f"{len(repeated)} ids repeat, first {repeated[0]!r}; give each id once")
    with self._lock:
      self._vectors |= {id: row.copy() for id, row in zip(ids, vectors, strict=True)}
      self._update(ids, lambda searcher: searcher.upsert(ids, vectors))

  def delete(self, ids: Sequence[str]) -> None:
    """Removes vectors; raises KeyError and removes none when an id is unknown."""
    ids = list(dict.fromkeys(ids))
    with self._lock:
      if unknown := [id for id in ids if id not in self._vectors]:
        raise KeyError(
          f"{len(unknown)} of {len(ids)} ids are unknown, first {unknown[0]!r}; nothing is deleted"
        )
      for id in ids:
        del self._vectors[id]
      self._update(ids, lambda searcher: searcher.delete(ids))

  def search(self, queries: ArrayLike, k: int) -> list[Found]:
    """Returns ids and dot products of the `k` nearest vectors of each query, the nearest first.

    A list is shorter only where the index has fewer vectors. Raises ValueError for k < 1, queries of another width,
    or a value that is not finite.
    """
    if k < 1:
      raise ValueError(f"a search returns at least one vector; got k={k}")
    queries = self._checked(queries, "queries")
    with self._lock:
      if not self._vectors or not len(queries):
        return [[] for _ in queries]
      return self._current_searcher().search(queries, min(k, len(self._vectors)))

  def save(
    self, folder: epath.PathLike, attributes: Mapping[str, Any] = MappingProxyType({})
  ) -> None:
    """Writes what changed since the last save into `folder`, or everything into a folder with another content.

    Args:
      folder: a local path or gs://; a kill leaves the save before this one readable. One process may write to it.
      attributes: JSON values that are saved together with the vectors.
    """
    folder = epath.Path(folder)
    with self._lock:
      base = self._saved
      if base and (
        len(base.segments) >= MAX_SEGMENTS or vector_files.newest_readable(folder) != base
      ):
        base = None
      self._write(folder, base, attributes)

  def compact(self, folder: epath.PathLike) -> None:
    """Writes all vectors as one segment, without what was replaced or deleted, and drops the searcher."""
    with self._lock:
      self._write(epath.Path(folder), None, self._attributes)
      self._searcher = None

  @classmethod
  def load(cls, folder: epath.PathLike) -> Self:
    """Reads the newest complete save; raises IndexFileError where there is none or a file was changed."""
    folder = epath.Path(folder)
    saved = vector_files.newest(folder)
    if saved is None:
      raise IndexFileError(f"{folder} has no index-*.json; save an index there first")
    self = cls(saved.width)
    self._vectors = vector_files.read(folder, saved)
    self._saved, self._attributes = saved, saved.attributes
    return self

  def _write(self, folder: epath.Path, base: Saved | None, attributes: Mapping[str, Any]) -> None:
    changed = self._unsaved if base else self._vectors
    upserted = {id: row for id, row in self._vectors.items() if id in changed}
    deleted = sorted(self._unsaved - self._vectors.keys()) if base else ()
    self._saved = vector_files.write(
      folder, base, Changes(upserted, deleted), self._width, attributes
    )
    self._attributes, self._unsaved = self._saved.attributes, set()

  def _update(self, ids: Sequence[str], change: Callable[[Searcher], None]) -> None:
    """Applies a change of the stored vectors to the searcher, which is dropped if it fails."""
    self._unsaved.update(ids)
    self._changed += len(ids)
    searcher, self._searcher = self._searcher, None
    if searcher and ids and self._vectors:
      change(searcher)
      self._searcher = searcher

  def _current_searcher(self) -> Searcher:
    if self._searcher is None or self._changed > REBUILD_SHARE * self._built_size:
      ids, vectors = list(self._vectors), np.stack(list(self._vectors.values()))
      self._searcher = SEARCHERS[choose_searcher(len(ids))](ids, vectors)
      self._built_size, self._changed = len(ids), 0
    return self._searcher

  def _checked(self, values: ArrayLike, what: str) -> Vectors:
    vectors = np.ascontiguousarray(values, np.float32)
    if np.ndim(values) != 2 or vectors.shape[1] != self._width:
      raise ValueError(
        f"{what} have the shape {np.shape(values)}; the index needs (number, {self._width})"
      )
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
      raise ValueError(f"{what}[{int(np.argmin(finite))}] has a value that is not finite")
    return vectors
