"""A folder of an index names its embedder, in the manifest of the same save."""

import pytest

from spatial_vlm.reuse.embedding.embedder import LEXICAL, LexicalEmbedder
from spatial_vlm.reuse.handbook.handbook import Behavior, Handbook, HandbookError
from spatial_vlm.reuse.index import index_folder, vector_files
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.index_folder import load_index, save_index
from spatial_vlm.reuse.index.vector_files import IndexFileError

LEFT = Behavior("behavior_a", "do a", "left of", ("The X is left of the Y.",), ("train:1",), 5)


def index_of(embedder):
  return BehaviorIndex(Handbook(9, 99, (LEFT,)), embedder, 0.5)


@pytest.fixture
def embedders(monkeypatch):
  known = {LEXICAL: LexicalEmbedder(), "narrow": LexicalEmbedder(64)}
  monkeypatch.setattr(index_folder, "load_embedder", known.__getitem__)
  return known


def test_each_save_is_loaded_with_its_own_embedder(tmp_path, embedders):
  """A kill leaves the newest or the save before it; both name their embedder."""
  save_index(index_of(embedders["narrow"]), tmp_path, "narrow")
  save_index(index_of(embedders[LEXICAL]), tmp_path, LEXICAL)
  assert load_index(tmp_path).vectors.shape == (1, 1024)
  newest = vector_files.newest(tmp_path)
  (tmp_path / f"index-{newest.number:05d}.json").unlink()
  assert load_index(tmp_path).vectors.shape == (1, 64)


def test_a_save_without_the_name_of_its_embedder_is_refused(tmp_path):
  index_of(LexicalEmbedder()).save(tmp_path)
  with pytest.raises(HandbookError, match="names no embedder; run `behaviors` again"):
    load_index(tmp_path)


def test_a_folder_without_an_index_is_refused(tmp_path):
  with pytest.raises(IndexFileError, match="has no index-"):
    load_index(tmp_path)
