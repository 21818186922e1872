"""The demo's report: result table, results.json, report.md and figures, from what the stages stored."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence

from etils import epath

from spatial_vlm import config as config_lib
from spatial_vlm import metrics
from spatial_vlm.config import Config
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import META_CATEGORY
from spatial_vlm.demo.methods import (
  DAPO_CHAIN,
  DAPO_REUSE,
  FOLDERS,
  METHODS,
  PAIRS,
  SFT_CHAIN,
  judge_aims,
)
from spatial_vlm.evaluation import figures
from spatial_vlm.evaluation.predictions import read_predictions
from spatial_vlm.evaluation.results import result_row, results_json, results_table
from spatial_vlm.evaluation.results_report import Report, Runs, markdown_report
from spatial_vlm.evaluation.scores import Scores, score_statements


def write_report(config: Config, workdir: epath.Path, seconds: float) -> str:
  """Writes results.json, report.md and its figures; returns the result table. `seconds` is the time of all stages."""
  runs = {method: read_predictions(workdir / folder) for method, folder in FOLDERS.items()}
  scores = {method: score_statements(run, META_CATEGORY) for method, run in runs.items()}
  rows = [result_row(method, scores[method]) for method in METHODS]
  report = Report(
    runs=runs,
    scores=scores,
    rows=METHODS,
    pairs=PAIRS,
    aims=judge_aims(runs, scores),
    meta_category=META_CATEGORY,
    figures=_draw(config, workdir, runs, scores),
    provenance=_provenance(config, seconds),
  )
  (workdir / "report.md").write_text(markdown_report(report))
  (workdir / "results.json").write_text(results_json(rows))
  return results_table(rows)


def _draw(
  config: Config, workdir: epath.Path, runs: Runs, scores: Mapping[str, Scores]
) -> dict[str, str]:
  """Draws the figures; returns caption → file name."""
  scenes = workdir / "scenes"
  source = JsonlSource(
    scenes / "test.jsonl", scenes / "images", scenes / "test.boxes.jsonl", max_bad_share=0.01
  )
  shown = [source[i] for i in evenly(len(source), config.scenes_shown)]
  curves = {
    "direct": metrics.read_metrics(workdir / "sft_direct"),
    "chain of thought": metrics.read_metrics(workdir / "sft"),
    "DAPO": metrics.read_metrics(workdir / "dapo"),
    "reuse": metrics.read_metrics(workdir / "sft_reuse"),
  }
  figures.training_curves(curves, workdir / "training.png")
  compared = {method: scores[method] for method in (SFT_CHAIN, DAPO_CHAIN, DAPO_REUSE)}
  figures.accuracy_by_relation(compared, workdir / "relations.png")
  figures.sample_scenes(shown, runs[DAPO_CHAIN], workdir / "scenes.png")
  return {
    "Training": "training.png",
    "Accuracy by relation": "relations.png",
    "Held-out scenes, answered by DAPO with chains of thought (bold: wrongly)": "scenes.png",
  }


def evenly(count: int, wanted: int) -> Sequence[int]:
  """Returns `wanted` numbers spread evenly over 0 … count − 1, so that nothing is chosen by its content."""
  wanted = min(wanted, count)
  return [i * count // wanted for i in range(wanted)]


def _provenance(config: Config, seconds: float) -> dict[str, str]:
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
