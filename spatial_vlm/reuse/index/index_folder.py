"""An index with the name of its embedder, so that the folder alone tells how to search it."""

from etils import epath

from spatial_vlm.reuse.embedding.embedder import load_embedder
from spatial_vlm.reuse.handbook.handbook import HandbookError
from spatial_vlm.reuse.index import vector_files
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex
from spatial_vlm.reuse.index.vector_files import IndexFileError

_NAME = "embedder_name"
"""Attribute of the manifest: the setting `embedder` of `behaviors`."""


def save_index(index: BehaviorIndex, folder: epath.Path, embedder: str) -> None:
  """Saves the index and, in the same manifest, the name of its embedder."""
  index.save(folder, {_NAME: embedder})


def load_index(folder: epath.PathLike) -> BehaviorIndex:
  """Loads an index with its embedder; raises IndexFileError or HandbookError for a damaged one."""
  saved = vector_files.newest(epath.Path(folder))
  if saved is None:
    raise IndexFileError(f"{folder} has no index-*.json; run `behaviors`")
  name = saved.attributes.get(_NAME)
  if not isinstance(name, str):
    raise HandbookError(f"{folder}: the index names no embedder; run `behaviors` again")
  return BehaviorIndex.load(folder, load_embedder(name))
