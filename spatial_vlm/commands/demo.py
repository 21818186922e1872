"""Run the whole method at tiny scale and show what each part brings.

Scenes → SFT on direct answers and on chains of thought → DAPO → behaviors and reuse → evaluation of every row on the
same held-out scenes. Ends with a table, WORKDIR/results.json, WORKDIR/report.md and figures. Interrupted at any moment,
the same command goes on where it was.

  spatial-vlm demo --workdir runs/demo
"""

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

from etils import epath

from spatial_vlm import config as config_lib
from spatial_vlm import metrics
from spatial_vlm.commands import behaviors, dapo, evaluate, scenes, sft
from spatial_vlm.config import Config
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.evaluation import figures, report
from spatial_vlm.evaluation.scoring import Prediction, score


class Stage(NamedTuple):
  """One command of the method, with what differs from its preset."""

  title: str
  folder: str
  command: ModuleType
  preset: str
  changes: dict[str, object]
  seconds: float
  """Expected on two quiet cores; the time left is scaled by how this machine has done so far."""

  def settings(self) -> Config:
    """Raises UsageError for what its command would refuse."""
    name = self.command.__name__.rpartition(".")[2]
    changes = [f"--config.{leaf}={value}" for leaf, value in self.changes.items()]
    config = config_lib.load(f"configs/{name}.py:{self.preset}", changes)
    self.command.check(config)
    return config


def stages(config: Config, workdir: epath.Path) -> list[Stage]:
  """The method, in order."""
  plan = Plan(config, workdir)
  base = config.base
  recalled = {"behaviors": workdir / "behaviors" / "index", "prompt_tokens": 96}
  return [
    plan.scenes(32),
    plan.measured("majority", "evaluate_majority", 2),
    plan.measured("zero-shot", "evaluate_zero_shot", 38, checkpoint=base, **WORD),
    plan.tuned("SFT on direct answers", "sft_direct", "direct", base, 138),
    plan.measured("direct", "evaluate_direct", 15, checkpoint=plan.export("sft_direct"), **WORD),
    plan.tuned("SFT on chains of thought", "sft", "tiny", base, 330),
    plan.measured("chain", "evaluate_sft", 63, checkpoint=plan.export("sft")),
    plan.aligned("dapo", plan.export("sft"), 300),
    plan.measured("chain", "evaluate_dapo", 56, checkpoint=plan.export("dapo")),
    plan.distilled("behaviors", plan.export("dapo"), 116),
    plan.tuned("fine-tuning on its own answers", "sft_reuse", "reuse", plan.export("dapo"), 185),
    plan.measured("reuse", "evaluate_reuse", 35, checkpoint=plan.export("sft_reuse"), **recalled),
    plan.measured("chain", "evaluate_reuse_chain", 15, checkpoint=plan.export("sft_reuse"), **PART),
  ]


WORD = {"max_tokens": 16}
"""Room for an answer that is one word."""
PART = {"limit": 1000}
"""Enough to see whether the full chain is unlearnt."""


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

  def export(self, folder: str) -> epath.Path:
    return self.workdir / folder / "export"

  def scenes(self, seconds: float) -> Stage:
    config = self.config
    counts = {
      "counts.train": config.training_scenes,
      "counts.validation": config.validation_scenes,
      "counts.test": config.test_scenes,
      "chains": config.chains,
    }
    return Stage("scenes", "scenes", scenes, "tiny", {"seed": config.seed, **counts}, seconds)

  def tuned(
    self, title: str, folder: str, preset: str, checkpoint: object, seconds: float
  ) -> Stage:
    own = self.workdir / "behaviors" / "conversations.jsonl"
    conversations = {
      "direct": self.pictures / "direct.jsonl",
      "tiny": self.pictures / "chains.jsonl",
    }
    changes = {
      "seed": self.config.seed,
      "checkpoint": checkpoint,
      "data.conversations": conversations.get(preset, own),
      "data.images": self.pictures / "images",
      "epochs": self.config.reuse_epochs if preset == "reuse" else self.config.sft_epochs,
    }
    return Stage(title, folder, sft, preset, changes, seconds)

  def aligned(self, folder: str, checkpoint: object, seconds: float) -> Stage:
    changes = {
      "seed": self.config.seed,
      "checkpoint": checkpoint,
      "data.validation": self.pictures / "validation.jsonl",
      "validate_prompts": min(512, self.config.validation_scenes),
      "validate_batch": min(256, self.config.validation_scenes),
      "steps": self.config.dapo_steps,
    }
    return Stage("DAPO", folder, dapo, "tiny", self.labels | changes, seconds)

  def distilled(self, folder: str, checkpoint: object, seconds: float) -> Stage:
    changes = {
      "checkpoint": checkpoint,
      "limit": self.config.behavior_scenes,
      "min_support": self.config.min_support,
    }
    title = "behaviors from the policy's own chains"
    return Stage(title, folder, behaviors, "tiny", self.labels | changes, seconds)

  def measured(self, method: str, folder: str, seconds: float, **changes: object) -> Stage:
    held_out = {
      "data.records": self.pictures / "test.jsonl",
      "data.images": self.pictures / "images",
      "data.boxes": self.pictures / "test.boxes.jsonl",
      "data.training_records": self.pictures / "train.jsonl",
      "timed_questions": self.config.timed_questions,
      "prompt_tokens": 64,  # as in DAPO, whose program to validate then serves here too
      "method": method,
    }
    title = f"evaluation, {folder.removeprefix('evaluate_').replace('_', ' ')}"
    return Stage(title, folder, evaluate, "tiny", held_out | changes, seconds)


ROWS = {
  report.MAJORITY: "evaluate_majority",
  report.ZERO_SHOT: "evaluate_zero_shot",
  report.SFT_DIRECT: "evaluate_direct",
  report.SFT_CHAIN: "evaluate_sft",
  report.DAPO_CHAIN: "evaluate_dapo",
  report.DAPO_REUSE: "evaluate_reuse",
  report.REUSE_FULL_CHAIN: "evaluate_reuse_chain",
}
"""Rows of the table and where their predictions are."""


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  plan = stages(config, workdir)
  for stage in plan:
    stage.settings()
  config_lib.snapshot(config, workdir, ("scenes_shown",))
  expected = took = 0.0
  for number, stage in enumerate(plan, 1):
    folder = workdir / stage.folder
    if (seconds := finished(folder)) is None:
      pace = took / expected if took else 1.0
      left = pace * sum(
        s.seconds for s in plan[number - 1 :] if finished(workdir / s.folder) is None
      )
      print(f"\n[{number}/{len(plan)}] {stage.title} · {minutes(left)} left", flush=True)
      seconds = execute(stage, folder, args)
    expected, took = expected + stage.seconds, took + seconds
  write_report(config, workdir, took)


def execute(stage: Stage, folder: epath.Path, args: argparse.Namespace) -> float:
  """Runs a stage to its end and notes how long it took, earlier starts not counted."""
  start = time.perf_counter()
  folder.mkdir(parents=True, exist_ok=True)
  stage.command.run(stage.settings(), folder, args)
  seconds = time.perf_counter() - start
  (folder / DONE).write_text(json.dumps({"seconds": seconds}) + "\n")
  return seconds


DONE = "finished.json"


def finished(folder: epath.Path) -> float | None:
  """Seconds that a finished stage took; None when it has not come to its end."""
  try:
    return json.loads((folder / DONE).read_text())["seconds"]
  except (FileNotFoundError, json.JSONDecodeError):
    return None


def minutes(seconds: float) -> str:
  return f"about {max(1, round(seconds / 60))} min"


def write_report(config: Config, workdir: epath.Path, seconds: float) -> None:
  """The table, results.json, report.md and its figures, from what the stages stored."""
  runs = {method: list(read_predictions(workdir / folder)) for method, folder in ROWS.items()}
  scores = {method: score(predictions, META_CATEGORY) for method, predictions in runs.items()}
  rows = [report.result_row(method, scores[method]) for method in report.METHODS]
  pictures = draw(config, workdir, runs, scores)
  text = report.markdown_report(runs, scores, META_CATEGORY, pictures, made(config, seconds))
  (workdir / "report.md").write_text(text)
  (workdir / "results.json").write_text(report.results_json(rows))
  print(f"\n{report.table(rows)}\n")
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
  compared = {m: scores[m] for m in (report.SFT_CHAIN, report.DAPO_CHAIN, report.DAPO_REUSE)}
  figures.accuracy_by_relation(compared, workdir / "relations.png")
  figures.sample_scenes(shown, runs[report.DAPO_CHAIN], workdir / "scenes.png")
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
