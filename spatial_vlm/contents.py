"""Digests of the files that a config names, so that a second start notices other contents under the same names."""

import hashlib
from collections.abc import Collection

import fsspec
from etils import epath

from spatial_vlm.config import Config, leaves, matches_any
from spatial_vlm.inputs import find_here, named_paths
from spatial_vlm.remote import is_remote

FILES = (
  *("checkpoint", "behaviors", "chains", "evaluation", "embedder"),
  *("data.records", "data.training_records", "data.conversations", "data.mix", "data.boxes"),
  *("data.images", "data.evaluation", "data.validation"),
)
"""Leaves that name files whose contents a run depends on. A word of another leaf may be the name of a file too."""
MARKS = ("config.json", "index-*.json")
"""Files of the folders that are read as a whole: checkpoints, behavior indexes. Folders of images are not."""
_WHOLE_BYTES = 64 << 20
"""Files of up to this size are read whole; of larger ones, blocks at equal distances, which any training changes."""
_BLOCKS, _BLOCK_BYTES = 1024, 16 << 10


def contents(config: Config, harmless: Collection[str] = ()) -> dict[str, str]:
  """Returns leaf of FILES → digest of the files and folders that its value names; those that name none are left out.

  Of a folder of images only the records tell what is read, so that it counts by its name alone; a store of images
  counts by its manifest, an archive like any file.

  Args:
    harmless: patterns of leaves that do not count.
  """
  found = {}
  for name, value in leaves(config).items():
    if name in FILES and not matches_any(name, harmless):
      digests = [each for text in named_paths(value) if (each := _digest(text))]
      if digests:
        found[name] = "+".join(digests)
  return found


def _digest(text: str) -> str:
  """Returns a digest of the file or marked folder at a path; "" without one."""
  if (path := find_here(text)) is None:
    return ""
  if not path.is_dir():
    return _file_digest(path)
  if not any(next(iter(path.glob(mark)), None) for mark in MARKS):
    return ""
  files = [file for file in path.iterdir() if not file.is_dir() and file.suffix != ".md"]
  parts = [f"{file.name} {_file_digest(file)}" for file in sorted(files)]
  return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _file_digest(path: epath.Path) -> str:
  """Returns a digest of a file: of its bytes, or of what an object store tells of them."""
  digest = hashlib.sha256()
  if is_remote(path):
    store, address = fsspec.url_to_fs(str(path))
    facts = store.info(address)
    digest.update(repr([facts.get(name) for name in ("size", "md5Hash", "crc32c")]).encode())
    return digest.hexdigest()[:16]
  size = path.stat().length
  digest.update(str(size).encode())
  with path.open("rb") as file:
    if size <= _WHOLE_BYTES:
      digest.update(file.read())
    else:
      for number in range(_BLOCKS):
        file.seek(number * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
        digest.update(file.read(_BLOCK_BYTES))
  return digest.hexdigest()[:16]
