"""Finds checkpoint folders, reads their config.json and copies the files next to their weights."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from spatial_vlm import remote
from spatial_vlm.config import PACKAGE_FOLDER, UsageError, matches_any
from spatial_vlm.jsonl import read_object
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.text import short_line

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"


def find_folder(folder: str, kind: str = "a Qwen3-VL model") -> epath.Path:
  """Returns a checkpoint folder: `folder` itself, or relative to the project (for the shipped models).

  Args:
    kind: what the folder should hold, for the error.

  Raises:
    UsageError: neither exists, or `folder` is on gs:// without the extra `gcs`.
  """
  remote.check_installed([folder])
  path = epath.Path(folder).expanduser()
  for candidate in (path, epath.Path(PACKAGE_FOLDER.parent) / folder):
    if candidate.is_dir():
      _refuse_training_run(candidate)
      return candidate
  raise UsageError(
    f"checkpoint folder {folder} does not exist; give a Hugging Face folder of {kind}"
  )


def _refuse_training_run(folder: epath.Path) -> None:
  """Raises UsageError for a workdir of `sft` or `dapo`, which holds its policy in a subfolder."""
  if not (folder / "checkpoints").is_dir() or (folder / "preprocessor_config.json").is_file():
    return
  export = folder / "export"
  if (export / CONFIG_FILE).is_file():
    remedy = f"its policy is in {export}"
  else:
    remedy = f"`spatial-vlm export --config.run={folder}` makes a folder of its newest checkpoint"
  raise UsageError(f"{folder} is the workdir of a training run, not a checkpoint folder; {remedy}")


def read_model_config(folder: epath.PathLike) -> ModelConfig:
  """Reads config.json of a Hugging Face Qwen3-VL folder, local or remote (gs://).

  Raises:
    FileNotFoundError: config.json is missing.
    ValueError: it does not describe a dense Qwen3-VL.
  """
  config = read_config(folder, "a Hugging Face Qwen3-VL checkpoint")
  with reading(epath.Path(folder) / CONFIG_FILE):
    return ModelConfig.from_huggingface(config)


def read_config(folder: epath.PathLike, kind: str) -> dict[str, Any]:
  """Reads config.json of a folder; raises FileNotFoundError, which names the `kind` of folder to give, without one."""
  file = epath.Path(folder) / CONFIG_FILE
  if not file.is_file():
    raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; give the folder of {kind}")
  with reading(file):
    return read_object(file)


@contextlib.contextmanager
def reading(path: epath.Path, what: str = "it") -> Iterator[None]:
  """Makes a ValueError that names the path of whatever the parsers of a foreign file or folder raise.

  transformers and tokenizers raise TypeError, AttributeError, plain Exception and Rust's panics for odd values. Missing
  files and extras, and errors that name the path already, are passed on.

  Args:
    what: what is read of the path, for the message.
  """
  try:
    yield
  except (FileNotFoundError, ImportError):
    raise
  except BaseException as error:
    is_panic = type(error).__name__ == "PanicException"  # of tokenizers, outside Exception
    text = str(error)
    if not isinstance(error, Exception) and not is_panic or str(path) in text:
      raise
    kind = (
      "" if isinstance(error, ValueError) else f"{what} cannot be read: {type(error).__name__}: "
    )
    raise ValueError(f"{path}: {kind}{short_line(text)}") from error


PROCESSOR_FILES = (
  *("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
  *("*processor_config.json", GENERATION_CONFIG_FILE, "chat_template.*"),
)
"""Patterns of a checkpoint folder's files besides the weights and config.json."""


def copy_processor(folder: epath.Path, source: epath.Path) -> None:
  """Copies PROCESSOR_FILES of `source` into `folder`; process 0 does it."""
  if jax.process_index() == 0:
    copy_files(folder, source, PROCESSOR_FILES)


def copy_files(folder: epath.Path, source: epath.Path, patterns: Sequence[str]) -> None:
  """Copies the files of `source` whose names match one of the patterns into `folder`; both may be remote."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in sorted(source.iterdir()):
    if matches_any(file.name, patterns):
      (folder / file.name).write_bytes(file.read_bytes())
