"""Turn the newest checkpoint of a training run into a Hugging Face folder.

A finished run has one already (RUN/export); this serves runs that are still going on, or were stopped, and other
types of weights. The folder WORKDIR loads in transformers and vLLM. Weights are read and written one after the other
and never lie in memory all at once; the optimizer's state is not read.

  spatial-vlm export --config.run=runs/dapo --config.dtype=bfloat16 --workdir exported
"""

import json

import jax
from etils import epath

from spatial_vlm import sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.setup import (
  DTYPES,
  check_positive,
  copy_processor,
  find_folder,
  master_shapes,
  user_errors,
)
from spatial_vlm.config import Config, UsageError
from spatial_vlm.model.weights import stream_checkpoint
from spatial_vlm.processor.chat import Processor


def run(config: Config, workdir: epath.Path, args) -> None:
  check(config)
  run_folder = epath.Path(config.run).expanduser()
  if run_folder.resolve() == workdir.resolve():
    raise UsageError(f"--workdir {workdir} is the run itself; give a folder of its own")
  try:
    settings = json.loads((run_folder / "config.json").read_text())["config"]
    source = find_folder(settings["checkpoint"])
  except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
    raise UsageError(
      f"{run_folder} is no workdir of `sft` or `dapo` ({error!r}); give one with a config.json"
    ) from error
  with user_errors():
    model = Processor.from_folder(source).model_config
  # A DAPO run keeps its train state beside the groups it has collected.
  above = ("train", "params") if "samples" in settings else ("params",)
  shapes = master_shapes(sharding.make_mesh({"data": 1, "fsdp": -1, "tensor": 1}), model)
  with Checkpoints(run_folder / "checkpoints", read_only=True) as checkpoints:
    step = checkpoints.latest()
    if step is None:
      raise UsageError(
        f"{run_folder} holds no complete checkpoint yet; let the run go on until it has written one"
      )

    def restored(path: str) -> jax.Array:
      names = path.split("/")
      state = at(shapes, names)
      for name in reversed((*above, *names)):
        state = {name: state}
      with user_errors():
        return at(checkpoints.restore(state, partial=True)[0], (*above, *names))

    copy_processor(workdir, source)
    stream_checkpoint(workdir, model, restored, config.dtype, config.max_file_bytes)
  print(f"checkpoint {step} of {run_folder} is in {workdir}")


def check(config: Config) -> None:
  """Raises UsageError for a type of weights that does not exist."""
  if config.dtype not in DTYPES:
    raise UsageError(f"dtype is {config.dtype!r}; choose one of {', '.join(DTYPES)}")
  check_positive(config, "max_file_bytes")


def at(tree, names):
  """The leaf under these names."""
  for name in names:
    tree = tree[name]
  return tree
