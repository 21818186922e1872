"""The vector index: checked updates, the searcher it keeps, files that any kill leaves readable."""

import json
import pickle
import shutil
import threading
import time

import numpy as np
import pytest
from etils import epath

from spatial_vlm.reuse.index import searchers, vector_files, vector_index
from spatial_vlm.reuse.index.vector_files import IndexFileError
from spatial_vlm.reuse.index.vector_index import VectorIndex

WIDTH = 8


def unit(count, seed=0):
  rows = np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index_of(count, seed=0):
  index = VectorIndex(WIDTH)
  index.upsert([f"v{i}" for i in range(count)], unit(count, seed))
  return index


def contents(index):
  return {id: index[id].tolist() for id in index.ids}


def test_upsert_search_delete():
  index = index_of(30)
  assert [found[0][0] for found in index.search(unit(30), 1)] == index.ids
  index.upsert(["v3", "new"], unit(2, seed=1))
  assert [found[0][0] for found in index.search(unit(2, seed=1), 1)] == ["v3", "new"]
  index.delete(["v3", "v3", "v4"])
  assert len(index) == 29 and "v3" not in index
  assert {id for id, _ in index.search(unit(1), 99)[0]} == set(index.ids)


def test_an_empty_index_finds_nothing():
  index = VectorIndex(WIDTH)
  assert index.search(unit(2), 3) == [[], []]
  index.upsert([], np.zeros((0, WIDTH)))
  index.upsert(["a"], unit(1))
  assert index.search(unit(1), 3)[0][0][0] == "a"
  assert index.search(np.zeros((0, WIDTH)), 3) == []
  index.delete(["a"])
  assert index.search(unit(2), 3) == [[], []]


@pytest.mark.parametrize("name", searchers.SEARCHERS)
def test_a_refused_call_changes_nothing(name, monkeypatch):
  """ScaNN changes its table of ids before it looks at the vectors, and takes an id twice."""
  monkeypatch.setattr(vector_index, "choose_searcher", lambda size: name)
  index = index_of(40)
  before, found = contents(index), index.search(unit(9), 5)
  nan, infinite = unit(2), unit(2)
  nan[1, 3], infinite[0, 0] = np.nan, np.inf
  for ids, vectors, message in (
    (["v1", "x"], nan, r"vectors\[1\] has a value that is not finite"),
    (["v1", "x"], infinite, r"vectors\[0\] has a value"),
    (["v1", "x"], unit(2)[:, :5], r"shape \(2, 5\); the index needs \(number, 8\)"),
    (["v1"], unit(1)[0], r"shape \(8,\)"),
    (["v1", "x"], unit(3), "2 ids and 3 vectors"),
    (["x", "v1", "x"], unit(3), "1 ids repeat, first 'x'"),
  ):
    with pytest.raises(ValueError, match=message):
      index.upsert(ids, vectors)
  with pytest.raises(KeyError, match="1 of 2 ids are unknown, first 'missing'; nothing is deleted"):
    index.delete(["v1", "missing"])
  assert contents(index) == before and index.search(unit(9), 5) == found
  index.upsert(["v1", "x"], unit(2, seed=3))
  assert [f[0][0] for f in index.search(unit(2, seed=3), 1)] == ["v1", "x"]


@pytest.mark.parametrize(
  ("queries", "k", "message"),
  [
    (np.full((2, WIDTH), np.nan), 1, r"queries\[0\] has a value that is not finite"),
    (np.zeros(WIDTH), 1, r"queries have the shape \(8,\)"),
    (np.zeros((1, 9)), 1, "shape"),
    (np.zeros((1, WIDTH)), 0, "k=0"),
  ],
)
def test_queries_are_checked(queries, k, message):
  with pytest.raises(ValueError, match=message):
    index_of(3).search(queries, k)


def test_the_callers_arrays_are_copied():
  vectors = unit(3)
  index = VectorIndex(WIDTH)
  index.upsert(["a", "b", "c"], vectors)
  vectors[:] = 0
  assert index.search(unit(3), 1)[1][0] == ("b", pytest.approx(1))


def test_a_searcher_is_updated_until_a_tenth_has_changed(monkeypatch):
  built = []

  def counted(ids, vectors):
    built.append(len(ids))
    return searchers.ExactSearcher(ids, vectors)

  monkeypatch.setattr(vector_index, "SEARCHERS", {"brute force": counted})
  index = index_of(100)
  index.search(unit(1), 1)
  for number in range(10):
    index.upsert([f"new{number}"], unit(1, seed=50 + number))
    assert index.search(unit(1, seed=50 + number), 1)[0][0][0] == f"new{number}"
  assert built == [100]
  index.delete(["v0"])
  index.search(unit(1), 1)
  assert built == [100, 109]


def test_a_searcher_that_fails_is_dropped(monkeypatch):
  index = index_of(100)
  index.search(unit(1), 1)

  def fail(ids, vectors):
    raise RuntimeError("out of memory")

  monkeypatch.setattr(index._searcher, "upsert", fail)
  with pytest.raises(RuntimeError):
    index.upsert(["x"], unit(1, seed=7))
  assert index.search(unit(1, seed=7), 1)[0][0][0] == "x"  # stored, and found by a new searcher


def test_the_tree_is_used_from_its_size_on(monkeypatch):
  monkeypatch.setattr(searchers, "TREE_FROM", 60)
  small, large = index_of(59), index_of(60)
  small.search(unit(1), 1), large.search(unit(1), 1)
  assert isinstance(small._searcher, searchers.BruteForceSearcher)
  assert isinstance(large._searcher, searchers.TreeSearcher)
  assert len(large.search(unit(1), 60)[0]) == 60


class SlowSearcher(searchers.ExactSearcher):
  """Lets other threads run in the middle of an update."""

  def upsert(self, ids, vectors):
    super().upsert(ids[:2], vectors[:2])
    time.sleep(1e-3)
    super().upsert(ids[2:], vectors[2:])


@pytest.mark.parametrize("name", [*searchers.SEARCHERS, "slow"])
def test_threads_search_while_others_update(name, monkeypatch):
  """Every result is of one state: all ids of an update or none."""
  monkeypatch.setattr(vector_index, "SEARCHERS", {**searchers.SEARCHERS, "slow": SlowSearcher})
  monkeypatch.setattr(vector_index, "choose_searcher", lambda size: name)
  index, errors = index_of(50), []
  fixed = set(index.ids)

  def update(letter, seed):
    for number in range(25):
      ids = [f"{letter}{number}_{i}" for i in range(4)]
      index.upsert(ids, unit(4, seed * 100 + number))
      index.delete(ids)

  def search():
    for _ in range(60):
      found = {id for id, _ in index.search(unit(1), 99)[0]}
      groups = {id.split("_")[0] for id in found - fixed}
      if not fixed <= found or len(found - fixed) != 4 * len(groups):
        errors.append(found)

  threads = [threading.Thread(target=update, args=("x", 1))]
  threads += [threading.Thread(target=update, args=("y", 2))]
  threads += [threading.Thread(target=search) for _ in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not errors and set(index.ids) == fixed


def test_save_and_load_in_a_moved_folder(tmp_path):
  index = index_of(20)
  index.upsert(["ünïcode “id”\n", ""], unit(2, seed=4))
  index.save(tmp_path / "index", {"any": [1, "x"]})
  moved = (tmp_path / "index").rename(tmp_path / "moved")
  loaded = VectorIndex.load(moved)
  assert contents(loaded) == contents(index) and loaded.attributes == {"any": [1, "x"]}
  assert loaded.search(unit(5), 3) == index.search(unit(5), 3)


def test_nothing_is_pickled(tmp_path, monkeypatch):
  """Reading an index must not be able to execute code; ScaNN pickles its ids."""

  def refuse(*_, **__):
    raise AssertionError("pickle was used")

  for name in ("load", "loads", "dump", "dumps"):
    monkeypatch.setattr(pickle, name, refuse)
  index_of(20).save(tmp_path)
  VectorIndex.load(tmp_path).search(unit(1), 1)
  assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def files(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_save_writes_what_changed(tmp_path):
  index = index_of(100)
  index.save(tmp_path)
  index.upsert(["v1", "new"], unit(2, seed=1))
  index.delete(["v2", "v3"])
  index.upsert(["gone"], unit(1, seed=2))
  index.delete(["gone"])
  index.save(tmp_path)
  assert files(tmp_path) == [
    "index-00000.json",
    "index-00001.json",
    "vectors-00000.safetensors",
    "vectors-00001.safetensors",
  ]
  sizes = [(tmp_path / name).stat().st_size for name in files(tmp_path)[2:]]
  assert sizes[1] < sizes[0] / 5
  assert contents(VectorIndex.load(tmp_path)) == contents(index)
  index.save(tmp_path)  # nothing changed
  assert len(files(tmp_path)) == 4
  index.save(tmp_path, {"a": 1})
  assert files(tmp_path)[:2] == ["index-00001.json", "index-00002.json"]
  assert VectorIndex.load(tmp_path).attributes == {"a": 1}


def test_equal_content_is_not_written_again(tmp_path):
  index_of(9).save(tmp_path, {"a": 1})
  index_of(9).save(tmp_path, {"a": 1})
  assert len(files(tmp_path)) == 2
  (tmp_path / "vectors-00000.safetensors").unlink()
  index_of(9).save(tmp_path, {"a": 1})  # repairs the folder
  assert contents(VectorIndex.load(tmp_path)) == contents(index_of(9))


def test_another_content_of_the_folder_is_replaced(tmp_path):
  index_of(9).save(tmp_path)
  other = index_of(5, seed=1)
  other.save(tmp_path)
  assert contents(VectorIndex.load(tmp_path)) == contents(other)
  loaded = VectorIndex.load(tmp_path)
  for count in (6, 7):  # another process wrote since
    index_of(count).save(tmp_path)
  loaded.upsert(["x"], unit(1))
  loaded.save(tmp_path)
  assert contents(VectorIndex.load(tmp_path)) == contents(loaded)


def test_compaction_leaves_one_segment(tmp_path):
  index = index_of(30)
  for number in range(5):
    index.save(tmp_path, {"number": number})
    index.upsert(["v1"], unit(1, seed=number))
  index.compact(tmp_path)
  assert contents(VectorIndex.load(tmp_path)) == contents(index)
  assert VectorIndex.load(tmp_path).attributes == {"number": 4}
  index.save(tmp_path, {"number": 5})
  index.save(tmp_path, {"number": 6})
  assert len([name for name in files(tmp_path) if name.startswith("vectors")]) == 1


def test_many_saves_are_compacted(tmp_path):
  index = index_of(5)
  for number in range(40):
    index.upsert(["v1"], unit(1, seed=number))
    index.save(tmp_path)
  assert len(files(tmp_path)) <= 2 * (vector_index.MAX_SEGMENTS + 1)
  assert contents(VectorIndex.load(tmp_path)) == contents(index)


class Killed(BaseException):
  pass


@pytest.mark.parametrize("base", [True, False])
def test_a_kill_at_any_write_leaves_a_readable_state(tmp_path, monkeypatch, base):
  """Stops each write of a save in the middle, before and after, and each removal of a file."""
  index = index_of(20)
  for number in range(3):  # so that the save below removes files
    index.upsert(["v1"], unit(1, seed=number))
    index.save(tmp_path / "start", {"n": number})
  old = contents(index)
  changed = VectorIndex.load(tmp_path / "start") if base else index_of(20)
  changed.upsert(["v2", "new"], unit(2, seed=8))
  steps, stop, share = 0, -1, 0.0
  kinds = {name: getattr(epath.Path("."), name).__func__ for name in ("write_bytes", "unlink")}

  def dying(name):
    def act(path, *args, **kwargs):
      nonlocal steps
      steps += 1
      if steps == stop and name == "write_bytes":
        kinds[name](path, args[0][: int(share * len(args[0]))])
      if steps == stop:
        raise Killed
      return kinds[name](path, *args, **kwargs)

    return act

  for name in kinds:
    monkeypatch.setattr(type(epath.Path(".")), name, dying(name))
  seen = set()
  for stop in range(1, 20):
    for share in (0.0, 0.5, 0.99, 1.0):
      folder = tmp_path / f"{stop}-{share}"
      shutil.copytree(tmp_path / "start", folder)
      steps = 0
      index = VectorIndex.load(folder) if base else index_of(20)
      index.upsert(["v2", "new"], unit(2, seed=8))
      try:
        index.save(folder, {"n": 9})
        finished = True
      except Killed:
        finished = False
      loaded = VectorIndex.load(folder)
      state = (loaded.attributes["n"], contents(loaded))
      assert state in ((2, old), (9, contents(changed)))
      assert not finished or state[0] == 9
      seen.add(state[0])
      steps = -100
      index.save(folder, {"n": 10})  # the next start goes on
      assert contents(VectorIndex.load(folder)) == contents(changed)
    if finished:
      break
  assert seen == {2, 9} and finished and stop > 3


@pytest.mark.parametrize("damage", ["omit", "truncate", "flip"])
def test_damage_of_any_file_is_noticed(tmp_path, damage):
  """The newest save, the one before, or an error: never a mixture of both."""
  index = index_of(20)
  index.save(tmp_path / "a", {"n": 0})
  old = contents(index)
  index.upsert(["v1", "new"], unit(2, seed=1))
  index.save(tmp_path / "a", {"n": 1})
  results = set()
  for name in files(tmp_path / "a"):
    content = (tmp_path / "a" / name).read_bytes()
    for place in range(0, len(content) - 1, max(1, len(content) // 15)):
      folder = tmp_path / f"{name}-{place}"
      shutil.copytree(tmp_path / "a", folder)
      if damage == "omit":
        (folder / name).unlink()
      elif damage == "truncate":
        (folder / name).write_bytes(content[:place])
      else:
        (folder / name).write_bytes(
          content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        )
      try:
        loaded = VectorIndex.load(folder)
      except IndexFileError as error:
        assert str(folder) in str(error)
        results.add("error")
        continue
      assert (loaded.attributes["n"], contents(loaded)) in ((0, old), (1, contents(index)))
      results.add(loaded.attributes["n"])
  assert results >= {"error", 1}


def test_folders_without_an_index_are_refused(tmp_path):
  with pytest.raises(IndexFileError, match=r"no index-\*\.json"):
    VectorIndex.load(tmp_path / "absent")
  (tmp_path / "index-00000.json").write_text('{"version": 1, "wid')
  with pytest.raises(IndexFileError, match="no index-.*is complete"):
    VectorIndex.load(tmp_path)
  (tmp_path / "index-00000.json").write_text("[]")
  with pytest.raises(IndexFileError, match="expected the fields"):
    VectorIndex.load(tmp_path)


def test_another_version_is_refused(tmp_path):
  index_of(2).save(tmp_path)
  path = tmp_path / "index-00000.json"
  manifest = json.loads(path.read_text()) | {"version": 2}
  path.write_text(json.dumps(manifest | {"sha256": vector_files._digest(manifest)}))
  with pytest.raises(IndexFileError, match="version is 2, readable is 1"):
    VectorIndex.load(tmp_path)


def test_a_width_is_needed():
  with pytest.raises(ValueError, match="width is 0"):
    VectorIndex(0)
