"""Run the whole method at tiny scale and show what each part brings.

Scenes → SFT on direct answers and on chains of thought → DAPO → behaviors and reuse → evaluation of every row on the
same held-out scenes. Two stages run at a time where one does not read what the other writes; seconds per answer are
measured at the end, one question at a time and nothing beside it. Ends with a table, WORKDIR/results.json,
WORKDIR/report.md and figures. Interrupted at any moment, the same command goes on where it was.

  spatial-vlm demo --workdir runs/demo
"""

import argparse
import datetime
import json
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from etils import epath

from spatial_vlm import config as config_lib
from spatial_vlm import metrics
from spatial_vlm.commands import behaviors, dapo, evaluate, scenes, sft
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.evaluation import figures, results_report
from spatial_vlm.evaluation.predictions import Prediction
from spatial_vlm.evaluation.scores import score

DONE = "finished.json"
TIMED = "timed.json"


class Stage(NamedTuple):
  """One command of the method, with what differs from its preset."""

  title: str
  folder: str
  command: Command
  preset: str
  changes: dict[str, object]
  seconds: float
  """Expected on two quiet cores, another stage beside it; the time left is scaled by how this machine has done so
  far."""
  needs: tuple[str, ...] = ()
  """Notes of the stages that it waits for."""
  note: str = DONE
  """File in its folder that tells that it came to its end, and when."""

  @property
  def name(self) -> str:
    return f"{self.folder}/{self.note}"

  def settings(self) -> Config:
    """Raises UsageError for what its command would refuse."""
    changes = [f"--config.{leaf}={value}" for leaf, value in self.changes.items()]
    config = config_lib.load(f"configs/{self.command.name}.py:{self.preset}", changes)
    self.command.check(config)
    return config


def stages(config: Config, workdir: epath.Path) -> list[Stage]:
  """The method. Every stage stands behind those that it needs, the longest chain of them first."""
  plan = Plan(config, workdir)
  base = config.base
  taught = [
    plan.scenes(17),
    plan.tuned("SFT on chains of thought", "sft", "tiny", base, 229),
    plan.aligned("dapo", "sft", 243),
    plan.distilled("behaviors", "dapo", 52),
    plan.tuned("fine-tuning on its own answers", "sft_reuse", "reuse", "dapo", 170),
    plan.tuned("SFT on direct answers", "sft_direct", "direct", base, 159),
  ]
  measured = [
    plan.measured("reuse", "evaluate_reuse", 18, "sft_reuse", **RECALLED),
    plan.measured("chain", "evaluate_reuse_chain", 9, "sft_reuse", **PART),
    plan.measured("majority", "evaluate_majority", 3, base),
    plan.measured("zero-shot", "evaluate_zero_shot", 26, base, **WORD),
    plan.measured("direct", "evaluate_direct", 10, "sft_direct", **WORD),
    plan.measured("chain", "evaluate_sft", 32, "sft"),
    plan.measured("chain", "evaluate_dapo", 33, "dapo"),
  ]
  plain = [*taught, *measured]
  return plain + one_by_one(plain, measured, config.timed_questions)


def one_by_one(before: list[Stage], measured: list[Stage], questions: int) -> list[Stage]:
  """The same evaluations once more, for the time of one question: each when everything else is over."""
  timed = []
  for stage in measured:
    changes = {**stage.changes, "timed_questions": questions}
    needs = tuple(s.name for s in [*before, *timed])
    title = stage.title.replace("evaluation", "seconds per answer")
    if stage.changes["method"] != "majority":
      timed.append(stage._replace(title=title, changes=changes, seconds=3, needs=needs, note=TIMED))
  return timed


WORD = {"max_new_tokens": 16}
"""Room for an answer that is one word."""
PART = {"limit": 1000}
"""Enough to see whether the full chain is unlearnt."""
PROMPT_TOKENS = 64
"""As in DAPO, whose program to validate then serves the evaluations too."""
RECALLED = {"prompt_tokens": 96}
"""Room for a behavior."""


class Plan(NamedTuple):
  """Stages of one demo: who reads what from whom. Every stage takes the seconds that it is expected to take."""

  config: Config
  workdir: epath.Path

  @property
  def pictures(self) -> epath.Path:
    return self.workdir / "scenes"

  @property
  def labels(self) -> dict[str, object]:
    return {"data.records": self.pictures / "train.jsonl", "data.images": self.pictures / "images"}

  def policy(self, source: str) -> object:
    """The checkpoint that the stage `source` writes, or the base."""
    return source if source == self.config.base else self.workdir / source / "export"

  def needs(self, *folders: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{DONE}" for folder in folders if folder != self.config.base)

  def scenes(self, seconds: float) -> Stage:
    config = self.config
    counts = {
      "counts.train": config.training_scenes,
      "counts.validation": config.validation_scenes,
      "counts.test": config.test_scenes,
      "chains": config.chains,
    }
    return Stage(
      "scenes", "scenes", scenes.COMMAND, "tiny", {"seed": config.seed, **counts}, seconds
    )

  def tuned(self, title: str, folder: str, preset: str, source: str, seconds: float) -> Stage:
    own = self.workdir / "behaviors" / "conversations.jsonl"
    conversations = {
      "direct": self.pictures / "direct.jsonl",
      "tiny": self.pictures / "chains.jsonl",
    }
    changes = {
      "seed": self.config.seed,
      "checkpoint": self.policy(source),
      "data.conversations": conversations.get(preset, own),
      "data.images": self.pictures / "images",
      "epochs": self.config.reuse_epochs if preset == "reuse" else self.config.sft_epochs,
    }
    read = "behaviors" if preset == "reuse" else "scenes"
    return Stage(title, folder, sft.COMMAND, preset, changes, seconds, self.needs(read, source))

  def aligned(self, folder: str, source: str, seconds: float) -> Stage:
    changes = {
      "seed": self.config.seed,
      "checkpoint": self.policy(source),
      "data.validation": self.pictures / "validation.jsonl",
      "validate_prompts": min(512, self.config.validation_scenes),
      "validate_batch": min(256, self.config.validation_scenes),
      "steps": self.config.dapo_steps,
    }
    needs = self.needs("scenes", source)
    return Stage("DAPO", folder, dapo.COMMAND, "tiny", self.labels | changes, seconds, needs)

  def distilled(self, folder: str, source: str, seconds: float) -> Stage:
    changes = {
      "checkpoint": self.policy(source),
      "limit": self.config.behavior_scenes,
      "min_support": self.config.min_support,
    }
    title = "behaviors from the policy's own chains"
    changes = self.labels | changes
    return Stage(
      title, folder, behaviors.COMMAND, "tiny", changes, seconds, self.needs("scenes", source)
    )

  def measured(
    self, method: str, folder: str, seconds: float, source: str, **changes: object
  ) -> Stage:
    held_out = {
      "checkpoint": self.policy(source),
      "data.records": self.pictures / "test.jsonl",
      "data.images": self.pictures / "images",
      "data.boxes": self.pictures / "test.boxes.jsonl",
      "data.training_records": self.pictures / "train.jsonl",
      "timed_questions": 0,  # at the end
      "prompt_tokens": PROMPT_TOKENS,
      "method": method,
    }
    read = ()
    if method == "reuse":
      read = ("behaviors",)
      held_out |= {"behaviors": self.workdir / "behaviors" / "index"}
    title = f"evaluation, {folder.removeprefix('evaluate_').replace('_', ' ')}"
    needs = self.needs("scenes", source, *read)
    return Stage(title, folder, evaluate.COMMAND, "tiny", held_out | changes, seconds, needs)


ROWS = {
  results_report.MAJORITY: "evaluate_majority",
  results_report.ZERO_SHOT: "evaluate_zero_shot",
  results_report.SFT_DIRECT: "evaluate_direct",
  results_report.SFT_CHAIN: "evaluate_sft",
  results_report.DAPO_CHAIN: "evaluate_dapo",
  results_report.DAPO_REUSE: "evaluate_reuse",
  results_report.REUSE_FULL_CHAIN: "evaluate_reuse_chain",
}
"""Rows of the table and where their predictions are."""


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  plan = stages(config, workdir)
  for stage in plan:
    stage.settings()
  config_lib.snapshot(config, workdir, HARMLESS)
  try:
    execute_all(plan, workdir, config.stages_at_once, args)
  except KeyboardInterrupt:
    # A stage in another thread can be stopped in no other way, and any moment is as good as another.
    print("\nstopped; run the same command again to go on", file=sys.stderr, flush=True)
    os._exit(130)
  write_report(config, workdir, busy_seconds([finished(workdir, stage) for stage in plan]))


HARMLESS = ("scenes_shown", "stages_at_once")
"""Settings that may change between two starts."""


class Span(NamedTuple):
  """When a stage began and ended, in seconds since 1970."""

  begun: float
  ended: float


def execute_all(
  plan: Sequence[Stage], workdir: epath.Path, at_once: int, args: argparse.Namespace
) -> None:
  """Runs what is not finished, the first in the plan that needs nothing unfinished before the others.

  A stage that fails ends the run once those beside it have ended.
  """
  spans = {stage.name: span for stage in plan if (span := finished(workdir, stage))}
  running: dict[Future, Stage] = {}
  with ThreadPoolExecutor(at_once) as pool:
    while len(spans) < len(plan):
      for stage in startable(plan, spans, running.values())[: at_once - len(running)]:
        number = len(spans) + len(running) + 1
        left = minutes(seconds_left(plan, spans, at_once))
        print(f"\n[{number}/{len(plan)}] {stage.title} · {left} left", flush=True)
        running[pool.submit(execute, stage, workdir, args)] = stage
      ended, _ = wait(running, return_when=FIRST_COMPLETED)
      for future in ended:
        spans[running.pop(future).name] = future.result()


def startable(
  plan: Sequence[Stage], done: Collection[str], running: Collection[Stage]
) -> list[Stage]:
  """Stages that could begin now, in the order of the plan."""
  return [
    stage
    for stage in plan
    if stage.name not in done and stage not in running and {*stage.needs} <= {*done}
  ]


def seconds_left(plan: Sequence[Stage], spans: Mapping[str, Span], at_once: int) -> float:
  """What the stages that are not finished take at least, at this machine's pace: the longest chain of them, or all of
  them shared out."""
  took = sum(span.ended - span.begun for span in spans.values())
  expected = sum(stage.seconds for stage in plan if stage.name in spans)
  until: dict[str, float] = {}
  for stage in plan:
    start = max((until[need] for need in stage.needs), default=0.0)
    until[stage.name] = start + (stage.seconds if stage.name not in spans else 0.0)
  shared = sum(stage.seconds for stage in plan if stage.name not in spans) / at_once
  return max(shared, *until.values()) * (took / expected if took else 1.0)


def execute(stage: Stage, workdir: epath.Path, args: argparse.Namespace) -> Span:
  """Runs a stage to its end and notes when that was, earlier starts not counted."""
  begun, folder = time.time(), workdir / stage.folder
  folder.mkdir(parents=True, exist_ok=True)
  stage.command.run(stage.settings(), folder, args)
  span = Span(begun, time.time())
  (folder / stage.note).write_text(json.dumps(span._asdict()) + "\n")
  return span


def finished(workdir: epath.Path, stage: Stage) -> Span | None:
  """When a finished stage ran; None when it has not come to its end."""
  try:
    return Span(**json.loads((workdir / stage.folder / stage.note).read_text()))
  except (FileNotFoundError, json.JSONDecodeError):
    return None


def busy_seconds(spans: Sequence[Span]) -> float:
  """Time during which at least one of the stages ran."""
  total, until = 0.0, 0.0
  for begun, ended in sorted(spans):
    total += max(0.0, ended - max(begun, until))
    until = max(until, ended)
  return total


def minutes(seconds: float) -> str:
  return f"about {max(1, round(seconds / 60))} min"


def write_report(config: Config, workdir: epath.Path, seconds: float) -> None:
  """The table, results.json, report.md and its figures, from what the stages stored."""
  runs = {method: list(read_predictions(workdir / folder)) for method, folder in ROWS.items()}
  scores = {method: score(predictions, META_CATEGORY) for method, predictions in runs.items()}
  rows = [results_report.result_row(method, scores[method]) for method in results_report.METHODS]
  pictures = draw(config, workdir, runs, scores)
  text = results_report.markdown_report(
    runs, scores, META_CATEGORY, pictures, made(config, seconds)
  )
  (workdir / "report.md").write_text(text)
  (workdir / "results.json").write_text(results_report.results_json(rows))
  print(f"\n{results_report.table(rows)}\n")
  print(
    f"report: {workdir / 'report.md'}   figures beside it   numbers: {workdir / 'results.json'}"
  )


def read_predictions(folder: epath.Path) -> Iterator[Prediction]:
  return map(Prediction.from_json, (folder / "predictions.jsonl").read_text().splitlines())


def draw(config: Config, workdir: epath.Path, runs, scores) -> dict[str, str]:
  """Caption -> file name of each figure."""
  pictures = workdir / "scenes"
  source = JsonlSource(
    pictures / "test.jsonl", pictures / "images", pictures / "test.boxes.jsonl", max_bad_share=0.01
  )
  shown = [source[i] for i in evenly(len(source), config.scenes_shown)]
  curves = {
    "direct": metrics.read_metrics(workdir / "sft_direct"),
    "chain of thought": metrics.read_metrics(workdir / "sft"),
    "DAPO": metrics.read_metrics(workdir / "dapo"),
    "reuse": metrics.read_metrics(workdir / "sft_reuse"),
  }
  figures.training_curves(curves, workdir / "training.png")
  compared = {
    m: scores[m]
    for m in (results_report.SFT_CHAIN, results_report.DAPO_CHAIN, results_report.DAPO_REUSE)
  }
  figures.accuracy_by_relation(compared, workdir / "relations.png")
  figures.sample_scenes(shown, runs[results_report.DAPO_CHAIN], workdir / "scenes.png")
  return {
    "Training": "training.png",
    "Accuracy by relation": "relations.png",
    "Held-out scenes, answered by DAPO with chains of thought": "scenes.png",
  }


def evenly(count: int, wanted: int) -> Sequence[int]:
  """`wanted` numbers spread over 0 … count − 1: not chosen by what they show."""
  wanted = min(wanted, count)
  return [i * count // wanted for i in range(wanted)]


def made(config: Config, seconds: float) -> dict[str, str]:
  settings = ", ".join(f"{name}={value}" for name, value in config_lib.leaves(config).items())
  versions = ", ".join(f"{name} {version}" for name, version in config_lib.versions().items())
  return {
    "date": datetime.date.today().isoformat(),
    "command": "spatial-vlm demo",
    "settings": settings,
    "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
    "versions": versions,
    "duration of the stages": f"{seconds / 60:.1f} min",
  }


COMMAND = Command("demo", run)
