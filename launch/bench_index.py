"""Compares searches for the nearest vectors: recall, latency, time and memory of the build, cost of updates.

Vectors are clustered as embeddings of sentences are (64 intrinsic dimensions) and have length 1. All searches run in
one thread, in one process, and take turns. Times are CPU times, which other work on the machine changes least. It
prints a table and draws a figure.

python launch/bench_index.py --figure docs/images/index_bench.png    about 20 minutes, 4 GB
python launch/bench_index.py --sizes 100 1000 10000
"""

import argparse
import gc
import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import faiss  # pyright: ignore[reportMissingImports]  # of the extra `bench`
import numpy as np
from threadpoolctl import threadpool_limits

from spatial_vlm.evaluation.figures import LinePanel, line_panels
from spatial_vlm.reuse.index.searchers import SEARCHERS, Searcher, TreeSearcher, choose_searcher
from spatial_vlm.reuse.index.vector_index import VectorIndex
from spatial_vlm.text import markdown_table

K, INTRINSIC, PER_CLUSTER = 10, 64, 20
SINGLE, BATCHED = 40, 256
"""Queries asked one by one, and in one call, in each turn."""

Search = Callable[[np.ndarray], Sequence[Sequence[int]] | np.ndarray]
"""Returns the numbers of the K nearest vectors of each query."""


def draw(count: int, width: int, seed: int, clusters: int) -> np.ndarray:
  """Returns `count` vectors of length 1 around `clusters` centres in a random subspace, with some noise outside it."""
  space = np.random.default_rng(0).normal(size=(INTRINSIC, width)).astype(np.float32)
  centres = np.random.default_rng(1).normal(size=(clusters, INTRINSIC)).astype(np.float32)
  rng = np.random.default_rng(seed)
  inner = 0.5 * rng.standard_normal((count, INTRINSIC), np.float32)
  inner += centres[rng.integers(0, clusters, count)]
  rows = inner @ space / INTRINSIC**0.5 + 0.1 * rng.standard_normal((count, width), np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def numbers(found: Sequence[Sequence[tuple[str, float]]]) -> list[list[int]]:
  return [[int(id) for id, _ in row] for row in found]


def searcher(name: str) -> Callable[[np.ndarray], Search]:
  def build(vectors: np.ndarray) -> Search:
    built = SEARCHERS[name](list(map(str, range(len(vectors)))), vectors)
    return lambda queries: numbers(built.search(queries, K))

  return build


def automatic(vectors: np.ndarray) -> Search:
  """Returns the search of the index as it is used, its store and checks included."""
  index = VectorIndex(vectors.shape[1])
  index.upsert(list(map(str, range(len(vectors)))), vectors)
  index.search(vectors[:1], K)
  return lambda queries: numbers(index.search(queries, K))


def faiss_flat(vectors: np.ndarray) -> Search:
  index = faiss.IndexFlatIP(vectors.shape[1])
  index.add(vectors)  # pyright: ignore[reportCallIssue]
  return lambda queries: index.search(queries, K)[1]  # pyright: ignore[reportCallIssue]


def faiss_hnsw(vectors: np.ndarray) -> Search:
  index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
  index.hnsw.efSearch = 128
  index.add(vectors)  # pyright: ignore[reportCallIssue]
  return lambda queries: index.search(queries, K)[1]  # pyright: ignore[reportCallIssue]


METHODS: Mapping[str, Callable[[np.ndarray], Search]] = {
  "NumPy, exact": searcher("exact"),
  "ScaNN, brute force": searcher("brute force"),
  "ScaNN, tree": searcher("tree"),
  "this index": automatic,
  "FAISS, Flat": faiss_flat,
  "FAISS, HNSW": faiss_hnsw,
}


class Row(NamedTuple):
  """Measurements of one search over vectors of one number and width; latencies are milliseconds per query."""

  width: int
  size: int
  method: str
  recall: float
  p50: float
  p95: float
  batched: float
  """Median over the turns of a batch."""
  build_s: float
  memory_mb: float
  """Growth of resident memory during the build."""


def resident_mb() -> float:
  gc.collect()
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * 4096 / 1e6


def measure(width: int, size: int, rounds: int) -> list[Row]:
  clusters = max(1, size // PER_CLUSTER)
  vectors = draw(size, width, 2, clusters)
  queries = draw(BATCHED, width, 3, clusters)
  searches, builds = {}, {}
  for name, build in METHODS.items():
    before, began = resident_mb(), time.process_time()
    searches[name] = build(vectors)
    builds[name] = (time.process_time() - began, resident_mb() - before)
    print(f"{width}-d, {size}: built {name} in {builds[name][0]:.2f} s", flush=True)
  single = {name: [] for name in searches}
  batched = {name: [] for name in searches}
  for turn, (name, search) in itertools.product(range(rounds + 1), searches.items()):
    for query in queries[:SINGLE]:
      began = time.process_time()
      search(query[None])
      single[name] += [time.process_time() - began] if turn else []
    began = time.process_time()
    search(queries)
    batched[name] += [(time.process_time() - began) / BATCHED] if turn else []
  truth = searches["NumPy, exact"](queries)
  return [
    Row(
      width,
      size,
      name,
      recall(search(queries), truth),
      1e3 * float(np.percentile(single[name], 50)),
      1e3 * float(np.percentile(single[name], 95)),
      1e3 * float(np.median(batched[name])),
      *builds[name],
    )
    for name, search in searches.items()
  ]


def recall(found: Iterable[Iterable[int]], truth: Iterable[Sequence[int]]) -> float:
  """Returns the share of the true nearest that were found."""
  return float(
    np.mean([len({*map(int, f)} & {*t}) / len(t) for f, t in zip(found, truth, strict=True)])
  )


class InPlace(TreeSearcher):
  """Adds vectors to the tree, as ScaNN offers it."""

  def upsert(self, ids: Sequence[str], vectors: np.ndarray) -> None:
    self._scann.upsert(list(ids), vectors, len(ids))
    self._in_tree.update(ids)


def update_rows(width: int, size: int) -> list[list[str]]:
  """Returns rows of a table: 1 % of new vectors added to a tree of `size`, and how many of them are found."""
  clusters, rows = max(1, size // PER_CLUSTER), []
  added = {
    "from the same clusters": draw(size // 100, width, 5, clusters),
    "from other clusters": -draw(size // 100, width, 6, clusters),
  }
  makers: dict[str, Callable[..., Searcher]] = {
    "ScaNN's update in place": InPlace,
    "searched next to the tree": TreeSearcher,
  }
  for (name, make), (kind, vectors) in itertools.product(makers.items(), added.items()):
    began = time.process_time()
    built = make(list(map(str, range(size))), draw(size, width, 2, clusters))
    build_s, ids = time.process_time() - began, [f"-{i}" for i in range(len(vectors))]
    began = time.process_time()
    built.upsert(ids, vectors)
    each_ms = 1e3 * (time.process_time() - began) / len(ids)
    began = time.process_time()
    found = built.search(vectors, 1)
    search_ms = 1e3 * (time.process_time() - began) / len(ids)
    share = np.mean([row[0][0] == id for row, id in zip(found, ids, strict=True)])
    rows.append(
      [name, kind, f"{share:.1%}", f"{each_ms:.3f}", f"{search_ms:.3f}", f"{build_s:.1f}"]
    )
  return rows


def table(rows: Sequence[Row]) -> str:
  exact = {(r.width, r.size): r for r in rows if r.method == "NumPy, exact"}
  header = ["width", "vectors", "search", "recall@10", "ms, one: p50", "p95", "of NumPy's"]
  header += ["ms, batch", "of NumPy's", "build, s", "MB"]
  cells = []
  for r in rows:
    base = exact[r.width, r.size]
    cells.append(
      [f"{r.width}", f"{r.size:,}", r.method, f"{r.recall:.3f}", f"{r.p50:.3f}", f"{r.p95:.3f}"]
      + [f"{r.p50 / base.p50:.2f}", f"{r.batched:.3f}", f"{r.batched / base.batched:.2f}"]
      + [f"{r.build_s:.2f}", f"{r.memory_mb:.0f}"]
    )
  return markdown_table(header, cells)


def figure(rows: Sequence[Row], path: str) -> None:
  panels = []
  kinds: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "one query, p50 ms": ("log", lambda r: r.p50),
    "a query of 256, ms": ("log", lambda r: r.batched),
    "recall@10": ("linear", lambda r: r.recall),
  }
  for width, (title, (scale, value)) in itertools.product(
    sorted({r.width for r in rows}, reverse=True), kinds.items()
  ):
    lines = {
      method: [(r.size, value(r)) for r in rows if (r.width, r.method) == (width, method)]
      for method in METHODS
    }
    panels.append(LinePanel(f"{width}-d: {title}", "vectors", lines, "log", scale))
  line_panels(panels, path, columns=3)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000, 20_000, 100_000])
  parser.add_argument("--widths", type=int, nargs="+", default=[1024, 128])
  parser.add_argument("--rounds", type=int, default=5, help="turns of each search (default 5)")
  parser.add_argument(
    "--updates", type=int, default=10_000, help="size of the updated tree; 0: none"
  )
  parser.add_argument("--figure", help="path of the figure, a PNG; by default none is drawn")
  parser.add_argument("--rows", help="path for the measurements as JSON lines")
  args = parser.parse_args()
  faiss.omp_set_num_threads(1)
  rows: list[Row] = []
  with threadpool_limits(1):
    for size, width in itertools.product(args.sizes, args.widths):
      rows += measure(width, size, args.rounds)
      if args.rows:
        Path(args.rows).write_text("".join(json.dumps(r._asdict()) + "\n" for r in rows))
    updates = update_rows(args.widths[0], args.updates) if args.updates else []
  if args.figure:
    figure(rows, args.figure)
  header = ["added vectors", "", "found first", "ms to add one", "ms a query", "build, s"]
  print(f"\n{markdown_table(header, updates, text_columns=2)}\n" if updates else "")
  print({size: choose_searcher(size) for size in args.sizes})
  print(table(rows))


if __name__ == "__main__":
  main()
