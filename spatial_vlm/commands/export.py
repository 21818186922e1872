"""Turn the newest checkpoint of a training run into a Hugging Face folder.

A finished run has one already (RUN/export); this command serves running or stopped runs, and other types of weights.
The folder WORKDIR loads in transformers and vLLM: next to the weights it has generation_config.json, the chat template,
and a model card (README.md, and spatial_vlm.json for programs). Weights are read and written one by one, so that memory
never holds all of them; the optimizer's state is not read. Frozen weights come from the checkpoint that the run started
from, with LoRA adapters merged. With adapter=true only the adapter is written.

  spatial-vlm export --config.run=runs/dapo --config.dtype=bfloat16 --workdir exported
  spatial-vlm export --config.run=runs/dapo --config.results=runs/evaluate --workdir exported  # table in the model card
  spatial-vlm export --config.run=runs/sft --config.adapter=true --workdir adapter
"""

import argparse
import datetime
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from spatial_vlm import sharding
from spatial_vlm.checkpoint import Checkpoints
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, UsageError, read_snapshot
from spatial_vlm.evaluation.results import results_table
from spatial_vlm.hosts import user_errors
from spatial_vlm.huggingface.folder import find_folder, read_model_config
from spatial_vlm.huggingface.model_card import KNOWLEDGE_FILE
from spatial_vlm.huggingface.peft_adapter import ADAPTER_FILE, write_adapter
from spatial_vlm.huggingface.weights import stream_checkpoint
from spatial_vlm.inputs import check_inputs
from spatial_vlm.jsonl import read_object
from spatial_vlm.parameters.lora import is_adapter
from spatial_vlm.parameters.partition import flatten, subset_from_config, unflatten
from spatial_vlm.text import escaped, short_line
from spatial_vlm.train.policy_folder import write_policy_files
from spatial_vlm.train.trained_weights import trained_shapes, with_base
from spatial_vlm.workdir import SETTINGS_FILE

PARAMS_PATHS = {"sft": ("params",), "dapo": ("train", "params")}
"""Algorithm of a run → path of the trained parameters in its checkpoints."""


def run(config: Config, workdir: epath.Path, args) -> None:
  check(config)
  check_inputs(config, ("run", "results"))
  run_folder = epath.Path(config.run).expanduser()
  results = ""
  if config.results:
    results = read_results(config.results, [run_folder / "export", workdir])
  try:
    settings = read_object(run_folder / SETTINGS_FILE)["config"]
    params_path = PARAMS_PATHS[settings["algorithm"]]
    source = find_folder(settings["checkpoint"])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UsageError(
      f"{run_folder} is not a workdir of `sft` or `dapo` ({short_line(repr(error))}); give one with a config.json"
    ) from error
  check_target(workdir, source)
  with user_errors():
    model = read_model_config(source)
  mesh = sharding.make_mesh({"fsdp": -1})
  with Checkpoints(run_folder / "checkpoints", read_only=True) as checkpoints:
    step = checkpoints.latest()
    if step is None:
      raise UsageError(
        f"{run_folder} has no complete checkpoint yet; wait until the run has written one"
      )
    try:
      lora = {name: settings[f"lora.{name}"] for name in ("rank", "alpha", "targets")}
      subset = subset_from_config({**settings, "lora": lora})
    except KeyError as error:
      raise UsageError(
        f"the settings of {run_folder} lack {error}; an earlier version made it, so export it with that version"
      ) from error
    with user_errors():
      trained = flatten(trained_shapes(mesh, model, subset))

    def restored(path: str) -> jax.Array:
      names = (*params_path, *path.split("/"))
      state = trained[path]
      for name in reversed(names):
        state = {name: state}
      with user_errors():
        return at(checkpoints.restore(state, partial=True)[0], names)

    if config.adapter:
      check_adapter(run_folder, trained)
      adapter = unflatten({path: restored(path) for path in trained})
      write_adapter(workdir, settings["checkpoint"], model, subset, adapter)
    else:
      write_policy_files(workdir, source, settings, config.license, results, config.base_model)
      leaf_at = with_base(restored, checkpoints.host()["base"], mesh, model, subset)
      stream_checkpoint(workdir, model, leaf_at, config.dtype, config.max_file_bytes)
  if jax.process_index() == 0:
    print(f"exported: checkpoint {step} of {run_folder}")


def check_target(workdir: epath.Path, source: epath.Path) -> None:
  """Raises UsageError for a folder that holds what no `export` wrote: its weights would be removed."""
  if source.resolve() == workdir.resolve():
    raise UsageError(
      f"--workdir {workdir} is the base that the run started from; give another folder"
    )
  if workdir.name in ("export", "adapter") and read_snapshot(workdir.parent) is not None:
    raise UsageError(
      f"--workdir {workdir} belongs to the run in {workdir.parent}; give another folder"
    )
  held = {path.name for path in workdir.iterdir()} if workdir.is_dir() else set()
  held = {name for name in held if not name.startswith(".")}
  if held and not held & {KNOWLEDGE_FILE, ADAPTER_FILE}:
    raise UsageError(
      f"--workdir {workdir} holds files that no export wrote, such as {min(held)}; give a new or an empty folder"
    )


def check_adapter(run_folder: epath.Path, trained: Mapping[str, Any]) -> None:
  """Raises UsageError if the run trains parameters other than LoRA factors."""
  if others := [path for path in trained if not is_adapter(path)]:
    raise UsageError(
      f"{run_folder} trains {len(others)} parameters outside LoRA adapters ({others[0]} …), which an adapter file "
      "cannot hold; omit adapter=true"
    )


def check(config: Config) -> None:
  """Raises UsageError for a license or base model that is no identifier."""
  if not re.fullmatch(r"(?:[\w.-]+/[\w.-]+)?", config.base_model):
    raise UsageError(
      f"base_model is {config.base_model!r}; give the name of a model on the Hugging Face Hub, such as "
      "Qwen/Qwen3-VL-8B-Instruct"
    )
  if not re.fullmatch(r"[\w.-]*", config.license):
    raise UsageError(
      f"license is {config.license!r}; give an identifier of the Hugging Face Hub, such as apache-2.0"
    )


def read_results(workdir: str, exported: Sequence[epath.Path]) -> str:
  """Returns what was measured in a workdir of `evaluate`, and the table of its results, in Markdown.

  Args:
    workdir: of `evaluate`.
    exported: folders of the policy that the card is about.

  Raises UsageError if the workdir holds no results, or those of a control, of no model or of another checkpoint.
  """
  folder = epath.Path(workdir).expanduser()
  file = folder / "results.json"
  try:
    content = read_object(file)
    settings = read_object(folder / SETTINGS_FILE)["config"]
    rows, table = content["rows"], results_table(content["rows"])
    told = {name: str(settings[name]) for name in ("task", "template", "prompt")}
    method, control, checkpoint = (settings[name] for name in ("method", "control", "checkpoint"))
    measured_on = epath.Path(checkpoint).expanduser().resolve()
    told |= {"split": str(content["split"]), "records": str(rows[0]["n"])}
    day = datetime.datetime.fromtimestamp(file.stat().mtime, datetime.UTC).date()
  except (OSError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise UsageError(
      f"{file} holds no results ({short_line(repr(error))}); results is a workdir of `evaluate`"
    ) from error
  if control or method == "majority":
    asked = f"under the control {control!r}" if control else "with the method 'majority'"
    raise UsageError(
      f"{file} was measured {asked}, without the image; give a workdir of `evaluate` that shows it"
    )
  if measured_on not in [each.resolve() for each in exported]:
    raise UsageError(
      f"{file} was measured on {checkpoint}, which is another policy; evaluate "
      f"{' or '.join(os.fspath(each) for each in exported)}"
    )
  measured = ", ".join(f"{name} {escaped(value)}" for name, value in told.items())
  return f"Measured with `spatial-vlm evaluate` on {day}: {measured}.\n\n{table}"


def at(tree, names):
  """Returns the leaf under these names."""
  for name in names:
    tree = tree[name]
  return tree


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  if config.adapter:
    return ending(f"{workdir} (adapter, as PEFT reads it)", args.config)
  return ending(
    f"{workdir} (Hugging Face folder of the policy)",
    args.config,
    ["answer", "PHOTO", "STATEMENT", "--checkpoint", workdir],
    ["serve", "--checkpoint", workdir],
  )
