"""What the commands share: loading a policy, placing it on the devices, writing it out."""

import contextlib
import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from tqdm import tqdm

from spatial_vlm import sharding
from spatial_vlm.config import PACKAGE_FOLDER, Config, UsageError
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.model.stack import REMAT_POLICIES
from spatial_vlm.model.weights import read_checkpoint, write_checkpoint
from spatial_vlm.policy import Policy
from spatial_vlm.processor.chat import Processor
from spatial_vlm.processor.tokenizer import SpecialIds
from spatial_vlm.train.sft import init_state
from spatial_vlm.types import Params, Purpose, TrainState


def find_folder(folder: str) -> epath.Path:
  """A checkpoint folder, looked for here and then in the project (the shipped base)."""
  path = epath.Path(folder).expanduser()
  for candidate in (path, epath.Path(PACKAGE_FOLDER.parent) / folder):
    if candidate.is_dir():
      return candidate
  raise UsageError(
    f"checkpoint folder {folder} does not exist; give a Hugging Face folder of a Qwen3-VL model"
  )


def load_policy(folder: str, from_scratch_seed: int | None = None) -> Policy:
  """Model and processor of a Hugging Face folder; with a seed, its architecture with freshly drawn weights."""
  path = find_folder(folder)
  processor = Processor.from_folder(path)
  if from_scratch_seed is None:
    model, params = read_checkpoint(path)
  else:
    model = processor.model_config
    key = jax.random.fold_in(jax.random.key(from_scratch_seed), Purpose.WEIGHTS)
    params = jax.jit(init_params, static_argnums=0)(model, key)
  return Policy(processor, model, params, SpecialIds.of(processor.tokenizer, model))


PROCESSOR_FILES = (
  *("tokenizer*.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
  *("*processor_config.json", "generation_config.json", "chat_template.*"),
)
"""What a checkpoint folder holds beside its weights and sizes."""


def write_policy(
  folder: epath.Path, source: epath.Path, model: ModelConfig, params: Params
) -> None:
  """A Hugging Face folder: the weights, and the tokenizer and processor files of `source`."""
  folder.mkdir(parents=True, exist_ok=True)
  for file in sorted(source.iterdir()):
    if any(fnmatch.fnmatch(file.name, pattern) for pattern in PROCESSOR_FILES):
      (folder / file.name).write_bytes(file.read_bytes())
  write_checkpoint(folder, model, jax.device_get(params))


def settings_of(settings: type, config: Config, **known: object) -> Any:
  """The frozen dataclass `settings`, its fields read from the leaves of the same name, but for those that are known."""
  names = {field.name for field in dataclasses.fields(settings)} - known.keys()
  return settings(**{name: config[name] for name in names}, **known)


HARMLESS = ("log_*", "checkpoint_*", "keep_*", "*.workers", "mesh.*")
"""Settings that may change when a run goes on: they do not change its results."""


def place_state(mesh: Mesh, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """A fresh train state, its weights in float32, laid out over the mesh."""
  params = jax.tree.map(lambda p: p.astype(np.float32), params)
  shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
  shardings = sharding.state_shardings(mesh, shapes)
  params = jax.device_put(params, shardings.params)
  return jax.jit(lambda p: init_state(p, optimizer), out_shardings=shardings)(params)


def progress(name: str, done: int, total: int) -> tqdm:
  """A bar with the time left; only the first process shows it."""
  return tqdm(
    total=total,
    initial=done,
    desc=name,
    dynamic_ncols=True,
    disable=jax.process_index() > 0,
    mininterval=1.0,
  )


DTYPES = ("float32", "bfloat16")


def check_training(config: Config) -> None:
  """Raises UsageError for settings of the computation that do not exist."""
  if config.remat not in REMAT_POLICIES:
    raise UsageError(f"remat is {config.remat!r}; choose one of {', '.join(REMAT_POLICIES)}")
  if config.dtype not in DTYPES:
    raise UsageError(f"dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}")


def check_positive(config: Config, *names: str) -> None:
  """Raises UsageError unless all these leaves are at least 1."""
  for name in names:
    if config[name] < 1:
      raise UsageError(f"{name} is {config[name]}; it must be at least 1")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Around what a command does before its work begins: what is refused there, its user can mend."""
  try:
    yield
  except (ValueError, OSError, ImportError) as error:
    raise UsageError(str(error)) from error
