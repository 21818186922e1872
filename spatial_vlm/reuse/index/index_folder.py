"""An index with the name of its embedder, so that the folder alone tells how to search it."""

import json

from etils import epath

from spatial_vlm.remote import write_whole
from spatial_vlm.reuse.embedding.embedder import LEXICAL, load_embedder
from spatial_vlm.reuse.handbook.handbook import HandbookError, read_json
from spatial_vlm.reuse.index.behavior_index import BehaviorIndex

_FILE = "embedder.json"


def save_index(index: BehaviorIndex, folder: epath.Path, embedder: str) -> None:
  """Saves the index and the name of its embedder."""
  index.save(folder)
  write_whole(folder / _FILE, json.dumps({"embedder": embedder}) + "\n")


def load_index(folder: epath.PathLike) -> BehaviorIndex:
  """Loads an index with its embedder; raises HandbookError for a damaged one."""
  file = epath.Path(folder) / _FILE
  name = read_json(file) if file.exists() else {"embedder": LEXICAL}
  if not isinstance(name, dict) or not isinstance(name.get("embedder"), str):
    raise HandbookError(f"{file}: expected the field embedder; run `behaviors` again")
  return BehaviorIndex.load(folder, load_embedder(name["embedder"]))
