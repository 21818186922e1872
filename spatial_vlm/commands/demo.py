"""Run the whole method at tiny scale and show what each part brings.

Scenes → SFT on direct answers and on chains of thought → DAPO → behaviors and reuse → evaluation of every row on the
same held-out scenes. Two stages run at a time where neither reads the other's files, each in a process on half of the
cores; seconds per answer are measured at the end, one question at a time while nothing else runs. Ends with a table,
WORKDIR/results.json, WORKDIR/report.md and figures. After an interruption at any moment, the same command resumes.

  spatial-vlm demo --workdir runs/demo
"""

import argparse
import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

import jax
from etils import epath

from spatial_vlm.commands import behaviors, dapo, evaluate, scenes, sft
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.demo import demo_report
from spatial_vlm.demo.schedule import busy_seconds, finished, run_stages
from spatial_vlm.demo.stages import Stage, stages
from spatial_vlm.demo.workers import interruptible, worker_processes
from spatial_vlm.evaluation.seed_report import HARMLESS

COMMANDS = dict(scenes=scenes, sft=sft, dapo=dapo, behaviors=behaviors, evaluate=evaluate)
"""Name → module of the command that a stage runs."""


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  plan = stages(config, workdir)
  for stage in plan:
    with named(stage):
      COMMANDS[stage.command].check(stage.settings())
  snapshot(config, workdir, HARMLESS)
  # One process at a time can have an accelerator; `hosts.skip_absent_tpu` has settled on the CPU where there is none.
  is_cpu = jax.config.jax_platforms == "cpu"  # pyright: ignore[reportAttributeAccessIssue]
  at_once = config.stages_at_once if is_cpu else 1
  show = functools.partial(print, flush=True)
  try:
    with worker_processes(at_once, args.compilation_cache) as pool:
      run_stages(plan, workdir, at_once, pool, functools.partial(run_stage, args=args), show)
  except BrokenProcessPool:
    raise UsageError(
      "the process of a stage was killed, perhaps for want of memory: --config.stages_at_once=1 needs less. The same "
      "command goes on where it was"
    ) from None
  spans = [span for stage in plan if (span := finished(workdir, stage))]
  table = demo_report.write_report(config, workdir, busy_seconds(spans))
  print(f"\n{table}\n")


def run_stage(stage: Stage, folder: epath.Path, args: argparse.Namespace) -> None:
  """Runs the command of a stage in a worker."""
  with named(stage), interruptible():
    COMMANDS[stage.command].run(stage.settings(), folder, args)


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  policy = [
    "--checkpoint",
    workdir / "sft_reuse" / "export",
    "--behaviors",
    workdir / "behaviors" / "index",
  ]
  return ending(
    f"report.md, results.json and figures in {workdir}",
    args.config,
    ["answer", "PHOTO", "STATEMENT", *policy],
    ["serve", *policy],
  )


@contextlib.contextmanager
def named(stage: Stage) -> Iterator[None]:
  """Adds the name of the stage to the message of a UsageError: its leaf is one of the stage's command."""
  try:
    yield
  except UsageError as error:
    raise UsageError(
      f"stage {stage.title!r} of the demo, which runs `{stage.command}`: {error}"
    ) from error
