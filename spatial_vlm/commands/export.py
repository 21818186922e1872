"""Turn the newest checkpoint of a training run into a Hugging Face folder.

A finished run has one already (RUN/export); this serves runs that are still going on, or were stopped. The folder
WORKDIR loads in transformers and vLLM.

  spatial-vlm export --config.run=runs/dapo --workdir exported
"""

import json

import jax
from etils import epath

from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.setup import find_folder, user_errors, write_policy
from spatial_vlm.config import Config, UsageError
from spatial_vlm.model.qwen3_vl import init_params
from spatial_vlm.processor.chat import Processor


def run(config: Config, workdir: epath.Path, args) -> None:
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
  params = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
  # A DAPO run keeps its train state beside the groups it has collected.
  state = {"train": {"params": params}} if "samples" in settings else {"params": params}
  with Checkpoints(run_folder / "checkpoints", read_only=True) as checkpoints:
    if checkpoints.latest() is None:
      raise UsageError(
        f"{run_folder} holds no complete checkpoint yet; let the run go on until it has written one"
      )
    step = checkpoints.latest()
    with user_errors():
      state, _ = checkpoints.restore(state, partial=True)
  write_policy(workdir, source, model, state.get("train", state)["params"])
  print(f"checkpoint {step} of {run_folder} is in {workdir}")
