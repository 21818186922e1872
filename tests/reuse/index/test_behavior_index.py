"""The index: ScaNN against exact search, the least similarity, updates, files."""

import dataclasses
import hashlib
import shutil

import numpy as np
import pytest

from spatial_vlm.reuse.embedding.embedder import LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook, HandbookError
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.vector_files import IndexFileError
from spatial_vlm.reuse.index.vector_index import VectorIndex


def _unit(row):
  return row / np.linalg.norm(row)


class RandomEmbedder:
  """A random unit vector per text; texts in `broken` get the value given there."""

  def __init__(self, width=24, broken=None):
    self.width, self.broken, self.calls = width, broken or {}, []

  @property
  def fingerprint(self):
    return f"random-{self.width}"

  def embed(self, texts):
    self.calls += texts
    return np.stack([self._row(text) for text in texts]) if texts else np.zeros((0, self.width))

  def similarities(self, queries, candidates):
    return np.stack([*map(self._row, queries)]) @ np.stack([*map(self._row, candidates)]).T

  def _row(self, text):
    if text in self.broken:
      return self.broken[text]
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    row = np.random.default_rng(seed).normal(size=self.width)
    return row / np.linalg.norm(row)


def behavior(name, questions=None, **fields):
  questions = questions or (f"The X is {name} the Y.",)
  return Behavior(f"behavior_{name}", f"do {name}", "", questions, ("train:1",), 5, **fields)


def used(times):
  return {"recalls": times, "successes": times, "saved_tokens": 1.0}


def index_of(behaviors, embedder=None, min_similarity=-1.0, max_entries=1000, max_tokens=100_000):
  handbook = Handbook(max_entries, max_tokens, tuple(behaviors))
  return BehaviorIndex(handbook, embedder or RandomEmbedder(), min_similarity)


def exact_search(index, embedder, question, k, min_similarity):
  """Cosine of every question of every behavior; the best question counts."""
  (query,) = embedder.embed([question])
  best = {}
  for b in index.handbook.behaviors:
    best[b.name] = max(float(query @ row) for row in embedder.embed(list(b.questions)))
  ranked = sorted(best.items(), key=lambda item: -item[1])
  return [(name, score) for name, score in ranked if score >= min_similarity][:k]


@pytest.mark.parametrize(("k", "min_similarity"), [(1, -1.0), (5, -1.0), (500, -1.0), (5, 0.3)])
def test_scann_equals_exact_search(k, min_similarity):
  rng = np.random.default_rng(0)
  behaviors = [
    behavior(f"b{i}", tuple(f"question {i} {j}" for j in range(rng.integers(1, 5))))
    for i in range(120)
  ]
  index = index_of(behaviors, min_similarity=min_similarity)
  questions = [f"query {i}" for i in range(20)] + ["question 7 0", "question 7 0"]
  found = index.search(questions, k)
  for question, matches in zip(questions, found, strict=True):
    expected = exact_search(index, RandomEmbedder(), question, k, min_similarity)
    assert [b.name for b, _ in matches] == [name for name, _ in expected]
    np.testing.assert_allclose([s for _, s in matches], [s for _, s in expected], atol=1e-5)
  assert found[-1][0][0].name == "behavior_b7"


def test_below_min_similarity_nothing_is_recalled():
  index = index_of([behavior("left_of", ("The X is left of the Y.",))], LexicalEmbedder(), 0.7)
  questions = [
    "The X is left of the Y.",
    "The X is to the left of the Y.",
    "The X is right of the Y.",
    "",
  ]
  found = index.search(questions, 3)
  assert [len(matches) for matches in found] == [1, 1, 0, 0]
  assert found[0][0][1] == pytest.approx(1)


def test_min_similarity_of_one_asks_for_known_questions():
  names = [str(i) for i in range(50)]
  index = index_of([behavior(name) for name in names], min_similarity=1)
  found = index.search([f"The X is {name} the Y." for name in names] + ["other"], 1)
  assert [len(matches) for matches in found] == [1] * 50 + [0]


def test_a_behavior_counts_once_and_none_is_missed():
  """Many questions of one behavior are nearer than the only question of another."""
  many = tuple(f"m{i}" for i in range(60))
  center = RandomEmbedder()._row("center")
  near = {q: _unit(center + 0.01 * RandomEmbedder()._row(q)) for q in many}
  index = index_of(
    [behavior("many", many), behavior("b"), behavior("c")], RandomEmbedder(broken=near)
  )
  (found,) = index.search(["m0"], 3)
  assert {b.name for b, _ in found} == {"behavior_many", "behavior_b", "behavior_c"}


def test_the_embedders_final_similarity_orders_and_decides():
  class Hybrid(RandomEmbedder):
    def similarities(self, queries, candidates):
      final = {"The X is a the Y.": 0.2, "The X is b the Y.": 0.9, "The X is c the Y.": 0.5}
      return np.array([[final[c] for c in candidates] for _ in queries], np.float32)

  index = index_of([behavior("a"), behavior("b"), behavior("c")], Hybrid(), min_similarity=0.3)
  for matches in index.search(["q", "r", "q"], 3):
    assert [(b.name, s) for b, s in matches] == [
      ("behavior_b", pytest.approx(0.9)),
      ("behavior_c", pytest.approx(0.5)),
    ]


def test_a_known_question_is_not_embedded_again():
  embedder = RandomEmbedder()
  index = index_of([behavior("a")], embedder)
  embedder.calls.clear()
  index.search(["The X is a the Y.", "new", "new"], 1)
  assert embedder.calls == ["new"]


@pytest.mark.parametrize("behaviors", [[], [behavior("a")]])
def test_few_or_no_behaviors(behaviors):
  index = index_of(behaviors)
  assert [len(found) for found in index.search(["q", "r"], 9)] == [len(behaviors)] * 2
  assert index.search([], 9) == []
  assert index.vectors.shape == (len(behaviors), 24)


def test_updates_are_found_and_limits_apply():
  embedder = RandomEmbedder()
  index = index_of([], embedder, max_entries=3)
  index.upsert([behavior("a"), behavior("b", **used(2))])
  assert index.search(["The X is a the Y."], 1)[0][0][0].name == "behavior_a"
  index.upsert([behavior("c", **used(1)), behavior("d", **used(1))])  # a has the least utility
  assert [b.name for b in index.handbook.behaviors] == ["behavior_b", "behavior_c", "behavior_d"]
  assert "behavior_a" not in {b.name for b, _ in index.search(["The X is a the Y."], 9)[0]}
  assert len(index.vectors) == 3
  embedder.calls.clear()
  index.search(["The X is a the Y."], 1)
  assert embedder.calls == ["The X is a the Y."]  # its vector was dropped with it
  names = [
    found[0][0].name for found in index.search(["The X is c the Y.", "The X is d the Y."], 1)
  ]
  assert names == ["behavior_c", "behavior_d"]


@pytest.mark.parametrize(
  ("row", "message"),
  [
    (np.full(24, np.nan), "'bad'.*length nan"),
    (np.full(24, np.inf), "'bad'.*length inf"),
    (np.ones(24), "'bad'.*length 4.89"),
    (np.ones(23) / 23**0.5, "shape"),
  ],
)
def test_a_refused_vector_changes_nothing(row, message):
  index = index_of([behavior("a"), behavior("b")], RandomEmbedder(broken={"bad": row}))
  before = index.search(["q"], 5)
  with pytest.raises(ValueError, match=message):
    index.upsert([behavior("c", ("bad",))])
  with pytest.raises(ValueError, match=message):
    index.search(["bad"], 1)
  assert index.search(["q"], 5) == before


def test_arguments_are_checked():
  with pytest.raises(ValueError, match="min_similarity"):
    index_of([], min_similarity=1.5)
  with pytest.raises(ValueError, match="k=0"):
    index_of([behavior("a")]).search(["q"], 0)


def test_save_and_load(tmp_path):
  embedder = RandomEmbedder()
  index = index_of(
    [behavior("a", ("q1", "q2")), behavior("b", **used(3))], embedder, min_similarity=0
  )
  index.save(tmp_path / "index")
  moved = (tmp_path / "index").rename(tmp_path / "moved")
  embedder.calls.clear()
  loaded = BehaviorIndex.load(moved, embedder)
  assert embedder.calls == []  # vectors were stored
  assert loaded.handbook == index.handbook
  np.testing.assert_array_equal(loaded.vectors, index.vectors)
  assert loaded.search(["x", "q2", "y"], 2) == index.search(["x", "q2", "y"], 2)


def test_an_empty_index_is_saved_and_grows(tmp_path):
  index_of([]).save(tmp_path)
  loaded = BehaviorIndex.load(tmp_path, RandomEmbedder())
  loaded.upsert([behavior("a")])
  assert len(loaded.search(["q"], 1)[0]) == 1


def test_another_embedder_is_refused(tmp_path):
  index_of([behavior("a")]).save(tmp_path)
  with pytest.raises(HandbookError, match="random-24.*random-8"):
    BehaviorIndex.load(tmp_path, RandomEmbedder(width=8))


def test_an_index_of_something_else_is_refused(tmp_path):
  VectorIndex(24).save(tmp_path, {"embedder": "random-24"})
  with pytest.raises(HandbookError, match="min_similarity: expected float, found None"):
    BehaviorIndex.load(tmp_path, RandomEmbedder())


def test_a_damaged_handbook_is_named_with_the_place(tmp_path):
  handbook = index_of([behavior("a")]).handbook.to_json()
  handbook["behaviors"][0]["name"] = "a"
  attributes = {"embedder": "random-24", "min_similarity": 0.0, "handbook": handbook}
  VectorIndex(24).save(tmp_path, attributes)
  with pytest.raises(HandbookError, match=r"handbook: behaviors\[0\]: name 'a'"):
    BehaviorIndex.load(tmp_path, RandomEmbedder())


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.98])
def test_handbook_and_vectors_are_of_one_save(tmp_path, share):
  """Any file omitted (None) or cut: the save before, this save, or an error that names the folder."""
  index = index_of([behavior("a"), behavior("b")])
  index.save(tmp_path / "whole")
  old = index.handbook
  index.upsert([behavior("b", ("another question",)), behavior("c")])
  index.save(tmp_path / "whole")
  for path in sorted((tmp_path / "whole").iterdir()):
    folder = tmp_path / path.name
    shutil.copytree(tmp_path / "whole", folder)
    content = path.read_bytes()
    (folder / path.name).unlink()
    if share is not None:
      (folder / path.name).write_bytes(content[: int(share * len(content))])
    embedder = RandomEmbedder()
    try:
      loaded = BehaviorIndex.load(folder, embedder)
    except IndexFileError as error:
      assert str(folder) in str(error)
      continue
    assert loaded.handbook in (old, index.handbook)
    assert embedder.calls == []  # every question of the handbook has its vector
    kept = {q for b in loaded.handbook.behaviors for q in b.questions}
    assert set(loaded._vectors.ids) == kept


def test_the_handbook_cannot_be_changed_without_the_index():
  index = index_of([behavior("a")])
  with pytest.raises(AttributeError):
    index.handbook = Handbook(1, 1)
  with pytest.raises(dataclasses.FrozenInstanceError):
    index.handbook.behaviors = ()
