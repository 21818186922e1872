r"""Plan what a command needs of TPU chips, on a machine without any.

Compiles every program that a config's command would run (`sft`, `dapo`, `evaluate`, `behaviors`, `answer`, `serve`, and
`synthesize` by a policy) ahead of time for a TPU topology, each at its largest size. Shows for each chip the memory by
kind, the collectives by mesh axis, and bounds on the time. WORKDIR/plan.json has all figures. Needs libtpu (the extra
`plan`) and about a minute for a program of a large model on two cores; a second start compiles only what has changed.

  spatial-vlm plan --config configs/sft.py:8b --topology v5e:4x8
  spatial-vlm plan --config configs/sft.py:8b --topology v5p:2x2x4 --slices 2 --config.mesh.slice=2
  spatial-vlm plan --config configs/sft.py:8b --topology v6e:8x8 --search    # ranks meshes, micro-batches, remat
  spatial-vlm plan --config configs/sft.py:8b --model 4b --topology v5e:1x1 --config.lora.rank=16 \
    --config.trainable="('.*/lora_[ab]',)" --config.batch_size=1 --config.micro_batches=1

The compiler decides whether a program fits. Times are estimates at peak rates.
"""

import argparse
import functools
import importlib.metadata
import json

import jax
from etils import epath

from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, versions
from spatial_vlm.hosts import user_errors
from spatial_vlm.planning.advice import advise
from spatial_vlm.planning.cache import program_costs
from spatial_vlm.planning.plan_report import as_json, ranking_table, tables
from spatial_vlm.planning.programs import algorithm_of
from spatial_vlm.planning.search import search_settings, with_leaves
from spatial_vlm.planning.target import choose_model, make_target


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  jax.config.update("jax_platforms", "cpu")  # only compiles, so an accelerator stays free
  with user_errors():
    algorithm_of(config)
    model = choose_model(args.model, str(config.get("checkpoint") or ""))
    target = make_target(model, args.topology, args.slices)
  print(f"{args.config} on {len(target.devices)} chips ({args.slices} × {args.topology})\n")
  costs_of = functools.partial(program_costs, target=target, folder=workdir / "programs")
  trials = search_settings(config, target, costs_of) if args.search else []
  if trials:
    print(ranking_table(trials))
    best = trials[0].candidate.settings()
    config = with_leaves(config, best)
    print("\nbest:", *(f"--config.{name}={value}" for name, value in best.items()), "\n")
  costs = costs_of(config)
  origin = {
    "config": args.config,
    "topology": args.topology,
    "slices": args.slices,
    "versions": versions() | {"libtpu": importlib.metadata.version("libtpu")},
  }
  workdir.mkdir(parents=True, exist_ok=True)
  text = json.dumps(as_json(costs, trials, target.chip, **origin), indent=2)
  (workdir / "plan.json").write_text(text + "\n")
  for cost in costs:
    print(tables(cost, target.chip))
    for line in advise(config, cost, target):
      print(f"- {line}")
    print()


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  return ending(
    f"plan.json in {workdir}", args.config, [algorithm_of(config), "--config", args.config]
  )
