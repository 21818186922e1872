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

from spatial_vlm import hosts, sharding
from spatial_vlm.config import PACKAGE_FOLDER, Config, UsageError, snapshot
from spatial_vlm.model.config import ModelConfig
from spatial_vlm.model.int8 import held
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.model.stack import REMAT_POLICIES
from spatial_vlm.model.trainable import EVERYTHING, Subset, leaves, tree_of
from spatial_vlm.model.weights import abstract_params, open_checkpoint
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


def load_policy(
  folder: str,
  from_scratch_seed: int | None = None,
  mesh: Mesh | None = None,
  subset: Subset = EVERYTHING,
) -> Policy:
  """Model and processor of a Hugging Face folder; with a seed, its architecture with freshly drawn weights.

  To ask, leave `mesh` out: the weights are NumPy arrays in the types of the files. To train, give it: what trains is
  float32, what is frozen has the type that `subset` says; they lie over the mesh, and each process reads what its
  devices hold.
  """
  path = find_folder(folder)
  processor = Processor.from_folder(path)
  model = processor.model_config
  if from_scratch_seed is None:
    checkpoint = open_checkpoint(path)
    wanted = checkpoint.shapes if mesh is None else master_shapes(mesh, model, subset)
    params = checkpoint.read(wanted)
  else:
    key = jax.random.fold_in(jax.random.key(from_scratch_seed), Purpose.WEIGHTS)
    where = mesh and sharding.param_shardings(mesh, abstract_params(model))
    params = jax.jit(init_params, static_argnums=0, out_shardings=where)(model, key)
  return Policy(processor, model, params, SpecialIds.of(processor.tokenizer, model))


def master_shapes(mesh: Mesh, model: ModelConfig, subset: Subset = EVERYTHING) -> Params:
  """The weights as they are held to train, laid out over the mesh, as `jax.ShapeDtypeStruct`s: float32, but for those
  that are frozen (`model.int8.held`)."""
  shapes = leaves(held(abstract_params(model), subset))
  # a model without DeepStack has stacks of no layer, which no file holds
  return over_mesh(mesh, tree_of({path: leaf for path, leaf in shapes.items() if leaf.size}))


def over_mesh(mesh: Mesh, shapes: Params) -> Params:
  """Shapes of parameters, laid out over the mesh."""
  return sharding.placed(shapes, sharding.param_shardings(mesh, shapes))


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


def settings_of(settings: type, config: Config, **known: object) -> Any:
  """The frozen dataclass `settings`, its fields read from the leaves of the same name, but for those that are known."""
  names = {field.name for field in dataclasses.fields(settings)} - known.keys()
  return settings(**{name: config[name] for name in names}, **known)


HARMLESS = ("log_*", "checkpoint_*", "keep_*", "*.workers", "mesh.*", "sampling_mesh.*")
"""Settings that may change when a run goes on: they do not change its results."""


def place_state(mesh: Mesh, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
  """A fresh train state, its weights in float32, laid out over the mesh.

  Weights that lie there already (`load_policy` with a mesh) become part of it without a copy, so the caller gives
  them away: the first update overwrites them.
  """
  masters = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, np.float32), params)
  shapes = jax.eval_shape(lambda p: init_state(p, optimizer), masters)
  where = sharding.state_shardings(mesh, shapes)
  # one by one: a second copy of the model may not fit
  params = jax.tree.map(
    lambda p, sharding: jax.device_put(p.astype(np.float32), sharding), params, where.params
  )
  rest = jax.jit(
    lambda p: init_state(p, optimizer).replace(params=None),
    out_shardings=where.replace(params=None),
  )
  return rest(params).replace(params=params)


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
  """Around what a command does before its work begins: what is refused there, its user can mend.

  Of several processes, which all come here, what is refused to one ends all.
  """
  message, cause = None, None
  try:
    yield
  except (ValueError, OSError, ImportError) as error:
    message, cause = str(error), error
  if refused := hosts.error_of_any(message):
    raise refused from cause


def record_settings(config: Config, workdir: epath.Path) -> None:
  """`config.snapshot` of a training run: the first process writes, the others are checked against what it wrote."""
  first = jax.process_index() == 0
  with user_errors():
    if first:
      snapshot(config, workdir, HARMLESS)
  with user_errors():
    if not first and not (workdir / "config.json").exists():
      raise UsageError(
        f"{workdir} lacks the config.json that process 0 has written; --workdir must be a folder that all hosts share,"
        " e.g. on gs://"
      )
    if not first:
      snapshot(config, workdir, HARMLESS)


def check_rows(mesh: Mesh, name: str, rows: int) -> None:
  """Raises UsageError unless the mesh gives every process the rows of a batch that it reads: a block of its own."""
  count = jax.process_count()
  if rows % count:
    raise UsageError(
      f"{name} is {rows}; it must be a multiple of the {count} processes that share it"
    )
  shape, index = (rows,), jax.process_index()
  where = sharding.batch_sharding(mesh, jax.ShapeDtypeStruct(shape, np.int32))
  held = {
    row
    for rows_of in where.addressable_devices_indices_map(shape).values()
    for row in range(rows)[rows_of[0]]
  }
  if held != {*range(index * rows // count, (index + 1) * rows // count)}:
    parts = " × ".join(f"mesh.{axis} {mesh.shape[axis]}" for axis in sharding.ROWS)
    raise UsageError(
      f"{name} is {rows} and {parts}; these axes must cut a batch into as many parts as there are processes, {count}, "
      "or a multiple: raise one of them, or the batch"
    )
