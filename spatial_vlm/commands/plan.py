"""Tell what a training run needs of TPU chips, on a machine without any.

Compiles the very programs that the command of a config would run (the step of `sft`; sampling and the update of
`dapo`) ahead of time for a TPU topology, and shows what they need of a chip: memory by kind, exchanges by mesh axis,
bounds on the time of a step. WORKDIR/plan.json has all figures. Needs libtpu (the extra `plan`), and about a minute a
program on two cores; a second start compiles only what has changed.

  spatial-vlm plan --config configs/sft.py:8b --topology v5e:4x8
  spatial-vlm plan --config configs/sft.py:8b --topology v5p:2x2x4 --slices 2 --config.mesh.slice=2
  spatial-vlm plan --config configs/sft.py:8b --topology v6e:8x8 --search    # ranks meshes, micro-batches, remat
  spatial-vlm plan --config configs/sft.py:8b --model 4b --topology v5e:1x1 --config.lora.rank=16 \\
    --config.trainable="('.*/lora_[ab]',)" --config.batch_size=1 --config.micro_batches=1

Whether a program fits is the compiler's word; times are estimates at peak rates.
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from spatial_vlm import sharding
from spatial_vlm.commands.command import Command
from spatial_vlm.config import PACKAGE_FOLDER, Config, UsageError, leaves, versions
from spatial_vlm.hosts import user_errors
from spatial_vlm.huggingface.folder import find_folder
from spatial_vlm.huggingface.weights import CONFIG_FILE
from spatial_vlm.model.config import PRESETS, ModelConfig
from spatial_vlm.objectives.cross_entropy import CHUNKS
from spatial_vlm.planning.chips import GIB, Chip, topology_devices
from spatial_vlm.planning.compiled import LARGE, Needs, needs
from spatial_vlm.planning.plan_report import as_json, ranking, tables
from spatial_vlm.planning.programs import programs
from spatial_vlm.planning.search import REMAT, Candidate, Ranked, meshes, rank, search
from spatial_vlm.rollout.sampler import TOKENS


def arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--topology",
    default="v5e:4x8",
    help="TPU version and grid of chips of a slice, e.g. v5e:4x8, v5p:4x4x4, v6e:1x1 (default: %(default)s)",
  )
  parser.add_argument(
    "--slices", type=int, default=1, help="slices of that grid (default: %(default)s)"
  )
  parser.add_argument(
    "--model",
    choices=sorted(PRESETS),
    help="size of the model (default: that of --config.checkpoint if it is given, else 8b)",
  )
  parser.add_argument(
    "--search",
    action="store_true",
    help="try meshes, micro-batches and policies of remat, and rank those that fit",
  )


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  jax.config.update("jax_platforms", "cpu")  # nothing runs; a device at hand stays free
  with user_errors():
    if "lora" not in config:
      raise UsageError(
        f"{args.config} is no config of `sft` or `dapo`, whose programs can be planned"
      )
    if args.slices < 1:
      raise UsageError(f"--slices is {args.slices}; give 1 or more")
    model = model_of(config, args.model)
    chip, devices = topology_devices(args.topology, args.slices)
  where = Where(workdir, args.topology, args.slices, model, chip, devices)
  print(f"{args.config} on {len(devices)} chips ({args.slices} × {args.topology})\n")
  tried = candidates(config, where) if args.search else []
  if tried:
    print(ranking(tried, chip))
    settings = tried[0].candidate.settings()
    config = changed(config, settings)
    print("\nthe first:", *(f"--config.{name}={value}" for name, value in settings.items()), "\n")
  found = planned(config, where)
  more = {
    "config": args.config,
    "topology": args.topology,
    "slices": args.slices,
    "versions": versions() | {"libtpu": importlib.metadata.version("libtpu")},
  }
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(as_json(found, tried, chip, **more), indent=2)
  (workdir / "plan.json").write_text(text + "\n")
  for of_program in found:
    print(tables(of_program, chip))
    for line in advice(config, of_program, where):
      print(f"- {line}")
    print()
  print(f"all figures: {workdir / 'plan.json'}")


@dataclasses.dataclass(frozen=True)
class Where:
  """What is planned for, and the folder of what was found."""

  workdir: epath.Path
  topology: str
  slices: int
  model: ModelConfig
  chip: Chip
  devices: Sequence[Any]


def model_of(config: Config, name: str | None) -> ModelConfig:
  """Sizes by name, or of the config's checkpoint."""
  if name or not config.checkpoint:
    return PRESETS[name or "8b"]
  file = find_folder(config.checkpoint) / CONFIG_FILE
  return ModelConfig.from_huggingface(json.loads(file.read_text()))


def planned(config: Config, where: Where) -> list[Needs]:
  """What the programs of the config need, from an earlier start if nothing has changed since."""
  file = where.workdir / "programs" / f"{fingerprint(config, where)}.json"
  try:
    return [Needs(**needs) for needs in json.loads(file.read_text())]
  except (FileNotFoundError, json.JSONDecodeError):
    pass  # not compiled yet, or killed while it was written
  with user_errors():
    mesh = sharding.make_mesh(config.mesh, where.devices)
    traced = programs(config, where.model, mesh)
  with tqdm(traced, desc="compiling", unit="program", leave=False) as bar:
    found = []
    for program in bar:
      bar.set_postfix_str(program.name)
      with user_errors():
        found.append(needs(program, where.chip))
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps([dataclasses.asdict(needs) for needs in found]))
  return found


def fingerprint(config: Config, where: Where) -> str:
  """Of everything that decides what is compiled, the project's source included."""
  digest = hashlib.sha256()
  for file in sorted(PACKAGE_FOLDER.rglob("*.py")):
    digest.update(file.read_bytes())
  described = [leaves(config), where.topology, where.slices, dataclasses.asdict(where.model)]
  described += [versions(), importlib.metadata.version("libtpu")]
  digest.update(json.dumps(described, sort_keys=True).encode())
  return digest.hexdigest()[:16]


def candidates(config: Config, where: Where) -> list[Ranked]:
  """What meshes, micro-batches and policies of rematerialisation need, in order."""
  rows = rows_of_update(config)
  shapes = meshes(len(where.devices), where.slices)

  def attempt(candidate: Candidate) -> Ranked:
    bar.set_postfix_str(" ".join(map(str, candidate.settings().values())))
    return Ranked(candidate, planned(changed(config, candidate.settings()), where))

  found = []
  most = len(shapes) * len(REMAT)
  with tqdm(desc="searching", unit="candidate", total=most) as bar:
    for ranked in search(shapes, rows, attempt):
      found.append(ranked)
      bar.update(ranked.fits)
  if not found:
    raise UsageError(
      f"{rows} rows of an update cannot be shared out by any mesh of {len(where.devices)} chips; raise "
      "batch_size (or prompts) to a multiple of them"
    )
  return rank(found)


def changed(config: Config, settings: Mapping[str, Any]) -> Config:
  """The config with other values of some leaves, named from its root."""
  result = config.copy_and_resolve_references()
  for name, value in settings.items():
    group, _, leaf = name.rpartition(".")
    (result[group] if group else result)[leaf] = value
  return Config(result)


def advice(config: Config, found: Needs, where: Where) -> list[str]:
  """What to change, in terms of the config's leaves: where it does not fit, and where it wastes what it has."""
  lines = [] if found.fits else [*to_shrink(config, found, where)]
  sampling = "parameters to sample" in found.held_bytes
  shape = config.sampling_mesh if sampling else config.mesh
  mesh = sharding.make_mesh(shape, where.devices)
  rows = config.rollout_batch_size if sampling else rows_at_once(config)
  parts = sharding.axis_product(mesh, sharding.ROWS)
  used = sharding.axis_product(mesh, sharding.divisible_axes(sharding.ROWS, mesh, rows))
  if used < parts:
    lines.append(
      f"{rows} rows at a time lie on {used} of {parts} groups of chips, the others do the same work again: make them a "
      f"multiple of {parts}"
    )
  for scope, size in found.in_loops.items():
    if size:
      kind = {TOKENS: "token", CHUNKS: "chunk of scores"}[scope]
      lines.append(
        f"{size / 1e9:.1f} GB are sent in exchanges above {LARGE // 10**6} MB that run again for every {kind}: "
        + ("cut the weights by sampling_mesh.tensor" if scope == TOKENS else "raise chunk_tokens")
      )
  if found.lost_donation_bytes:
    lines.append(f"{found.lost_donation_bytes / GIB:.2f} GiB that could be overwritten are copied")
  return lines


def rows_at_once(config: Config) -> int:
  """Rows of a micro-batch of the training step; of `dapo`, answers."""
  group_size = int(config.group_size) if "group_size" in config else 1
  return rows_of_update(config) // int(config.micro_batches) * group_size


def rows_of_update(config: Config) -> int:
  """Rows (of `dapo`: groups) that one update learns from."""
  rows = (
    config.groups_per_batch // config.minibatches if "group_size" in config else config.batch_size
  )
  return int(rows)


def to_shrink(config: Config, found: Needs, where: Where) -> list[str]:
  """What makes the program smaller, the most effective first."""
  held, lines = sum(found.held_bytes.values()), []
  if held > 0.6 * where.chip.hbm_bytes:
    chips = 2 ** math.ceil(math.log2(found.chips * held / (0.6 * where.chip.hbm_bytes)))
    lines.append(
      f"{held / GIB:.1f} GiB lie on a chip throughout: cut them over more chips (mesh.fsdp; {chips} or so), or train "
      "low-rank pairs (lora.rank, trainable)"
    )
  if "parameters to sample" in found.held_bytes:
    heads = where.model.text.num_key_value_heads
    lines.append(
      f"sampling: raise sampling_mesh.tensor (now {config.sampling_mesh.tensor}, up to {heads}); lower round_prompts, "
      "group_size or max_new_tokens"
    )
    return lines
  if config.remat not in ("full", "offload"):
    lines.append(
      f"remat is {config.remat}: full keeps the least, and offload puts that into the host's memory"
    )
  parts = sharding.axis_product(sharding.make_mesh(config.mesh, where.devices), sharding.ROWS)
  if rows_at_once(config) > parts:
    lines.append(
      f"a chip computes {rows_at_once(config) // parts} rows at a time: raise micro_batches from {config.micro_batches}"
    )
  lines.append(f"lower chunk_tokens from {config.chunk_tokens}, or raise mesh.tensor")
  return lines


COMMAND = Command(
  "plan", run, add_arguments=arguments, default_config="configs/sft.py:8b", requires_files=False
)
