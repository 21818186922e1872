"""Searchers: all equal exact search; what ScaNN does with short results, few vectors and updates."""

import subprocess
import sys
import types

import numpy as np
import pytest

from spatial_vlm.reuse.index import searchers
from spatial_vlm.reuse.index.searchers import SEARCHERS, TreeSearcher, choose_searcher, import_scann


def clustered(count, width=16, seed=0, clusters=None):
  """Rows of length 1 around a few centres."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(clusters or max(1, count // 10), width))
  rows = centres[rng.integers(0, len(centres), count)] + 0.3 * rng.normal(size=(count, width))
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def names(count, letter="v"):
  return [f"{letter}{i}" for i in range(count)]


def expected(ids, vectors, query, k):
  scores = vectors @ query
  order = np.argsort(-scores)[:k]
  return [ids[i] for i in order], scores[order]


def check(searcher, ids, vectors, k):
  queries = clustered(70, vectors.shape[1], seed=5)
  for query, found in zip(queries, searcher.search(queries, k), strict=True):
    best, scores = expected(ids, vectors, query, k)
    assert [id for id, _ in found] == best
    np.testing.assert_allclose([s for _, s in found], scores, atol=1e-5)


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("k", [1, 7, 400, 999])
def test_searchers_equal_exact_search(name, k, monkeypatch):
  """Also for more neighbours than there are vectors; the tree reads all of its leaves here."""
  monkeypatch.setattr(searchers, "LEAF_SHARE", 1)
  monkeypatch.setattr(searchers, "REORDERED", 400)
  ids, vectors = names(400), clustered(400)
  check(SEARCHERS[name](ids, vectors), ids, vectors, k)


@pytest.mark.parametrize("name", SEARCHERS)
def test_updates_in_place_equal_a_new_searcher(name, monkeypatch):
  monkeypatch.setattr(searchers, "LEAF_SHARE", 1)
  monkeypatch.setattr(searchers, "REORDERED", 400)
  ids, vectors = names(300), clustered(300)
  searcher = SEARCHERS[name](ids, vectors)
  stored = dict(zip(ids, vectors, strict=True))

  def apply(upserted=(), rows=None, deleted=()):
    if upserted:
      searcher.upsert(upserted, rows)
      stored.update(zip(upserted, rows, strict=True))
    if deleted:
      searcher.delete(deleted)
      for id in deleted:
        del stored[id]
    check(searcher, list(stored), np.stack(list(stored.values())), 9)

  apply(names(50, "new"), clustered(50, seed=1))
  apply(names(20), clustered(20, seed=2))  # replaced
  apply(deleted=["v5", "new7", "v299", "v298", "new49"])
  apply(["v5", "new0", "other"], clustered(3, seed=3))
  apply(deleted=[id for id in stored if id.startswith("v")])  # leaves the tree empty


@pytest.mark.parametrize("name", ["brute force", "tree"])
def test_the_callers_ids_are_neither_changed_nor_read_later(name):
  """ScaNN keeps and changes the list of ids that it is given."""
  ids, vectors = names(20), clustered(20)
  searcher = SEARCHERS[name](ids, vectors)
  searcher.upsert(["new"], clustered(1, seed=1))
  searcher.delete(["v3"])
  assert ids == names(20)
  ids[:] = ["changed"] * 20
  assert "changed" not in {id for id, _ in searcher.search(vectors, 20)[0]}


def test_padding_of_a_short_result_is_dropped():
  """ScaNN fills a short row with the first id and a similarity of NaN."""
  builder = import_scann().scann_ops_pybind.builder(clustered(4), 1, "dot_product")
  scann = builder.score_brute_force().build(docids=names(4))
  padded = scann.search_batched(clustered(2), final_num_neighbors=9)
  assert np.isnan(padded[1]).any()
  for found in searchers._without_padding(*padded):
    assert sorted(id for id, _ in found) == names(4) and np.isfinite([s for _, s in found]).all()


@pytest.mark.parametrize("k", [30, 60])
def test_a_tree_whose_leaves_are_too_small_reads_all_of_them(k, monkeypatch):
  monkeypatch.setattr(searchers, "LEAF_SHARE", 0)  # one leaf
  ids, vectors = names(60), clustered(60, clusters=30)
  for found in TreeSearcher(ids, vectors).search(vectors, k):
    assert len({id for id, _ in found}) == k


def test_a_tree_finds_vectors_unlike_those_that_it_was_built_from(monkeypatch):
  """ScaNN's own update in place puts them into leaves that a search for them does not read."""
  monkeypatch.setattr(searchers, "LEAF_SHARE", 0.05)
  ids, vectors = names(2000), clustered(2000, width=64)
  tree = TreeSearcher(ids, vectors)
  others = clustered(50, width=64, seed=9)
  tree.upsert(names(50, "new"), others)
  assert [found[0][0] for found in tree.search(others, 1)] == names(50, "new")


@pytest.mark.parametrize("size", [1, 15, 16, 17, 40])
def test_few_vectors_get_a_searcher_that_can_be_built(size, monkeypatch):
  """ScaNN refuses to hash fewer than 16 vectors, and fewer vectors than leaves."""
  monkeypatch.setattr(searchers, "TREE_FROM", 0)
  name = choose_searcher(size)
  assert name == ("tree" if size >= 16 else "brute force")
  ids, vectors = names(size), clustered(size)
  assert len(SEARCHERS[name](ids, vectors).search(vectors[:1], 99)[0]) == size


def test_the_number_of_vectors_chooses():
  assert choose_searcher(searchers.TREE_FROM - 1) == "brute force"
  assert choose_searcher(searchers.TREE_FROM) == "tree"


def test_without_scann_search_is_exact(monkeypatch, caplog):
  monkeypatch.setattr(searchers.extras, "is_installed", lambda name: False)
  assert choose_searcher(100) == "exact" and not caplog.messages
  assert choose_searcher(10**6) == "exact"
  assert "[reuse]" in caplog.text


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_zero_query_is_similar_to_nothing(name):
  ids, vectors = names(20), clustered(20)
  (found,) = SEARCHERS[name](ids, vectors).search(np.zeros((1, 16), np.float32), 3)
  assert [s for _, s in found] == [0, 0, 0]


@pytest.mark.parametrize("loaded_before", ["", "import tensorflow"])
def test_a_failing_tensorflow_does_not_matter(tmp_path, loaded_before):
  """ScaNN imports TensorFlow if installed, and works with only one version of it."""
  (tmp_path / "tensorflow.py").write_text("loaded = True\n")
  code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
{loaded_before}
from spatial_vlm.reuse.index.searchers import import_scann
scann = import_scann()
assert scann.scann_ops_pybind.builder
import tensorflow  # is not lost
assert tensorflow.loaded
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_a_loaded_tensorflow_stays(monkeypatch):
  tensorflow = types.ModuleType("tensorflow")
  monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
  monkeypatch.delitem(sys.modules, "scann", raising=False)
  import_scann()
  assert sys.modules["tensorflow"] is tensorflow
