"""Checkpoint folders: where they are looked for, and the files next to the weights."""

import fnmatch

import jax
from etils import epath

from spatial_vlm.config import PACKAGE_FOLDER, UsageError


def find_folder(folder: str) -> epath.Path:
  """A checkpoint folder, looked for here and then in the project (the shipped base)."""
  path = epath.Path(folder).expanduser()
  for candidate in (path, epath.Path(PACKAGE_FOLDER.parent) / folder):
    if candidate.is_dir():
      return candidate
  raise UsageError(
    f"checkpoint folder {folder} does not exist; give a Hugging Face folder of a Qwen3-VL model"
  )


PROCESSOR_FILES = (
  *("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
  *("*processor_config.json", "generation_config.json", "chat_template.*"),
)
"""What a checkpoint folder holds beside its weights and sizes."""


def copy_processor(folder: epath.Path, source: epath.Path) -> None:
  """Copies what `source` holds beside its weights and sizes; of several processes, the first does it."""
  if jax.process_index() > 0:
    return
  folder.mkdir(parents=True, exist_ok=True)
  for file in sorted(source.iterdir()):
    if any(fnmatch.fnmatch(file.name, pattern) for pattern in PROCESSOR_FILES):
      (folder / file.name).write_bytes(file.read_bytes())
