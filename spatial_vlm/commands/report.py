"""Compare finished evaluations of the same records in one report.

Reads the workdirs of several `evaluate` runs and writes WORKDIR/report.md, results.json and a figure: accuracy by both
readings of an answer, differences from the first row, answers with and without the image (controls), reasoning against
direct answers, the spread over templates, contrastive pairs and right verdicts through wrong boxes. Every share has its
Wilson interval, every difference a paired test. A later start may add or drop rows.

With --config.demos, finished demos that differ in their seed are joined into one table of means and ranges instead.

  spatial-vlm report --config.runs="('runs/evaluate_sft', 'blank=runs/evaluate_sft_blank')" --workdir runs/report
  spatial-vlm report --config.demos="('runs/demo_seed*',)" --workdir runs/report_seeds
"""

import argparse
import datetime

from etils import epath

from spatial_vlm.answers import Grammar
from spatial_vlm.commands.ending import ending
from spatial_vlm.config import Config, UsageError, snapshot, versions
from spatial_vlm.evaluation import runs_report, seed_report
from spatial_vlm.evaluation.results import to_json
from spatial_vlm.evaluation.runs import FinishedRun, read_runs
from spatial_vlm.evaluation.runs_comparison import compare_runs
from spatial_vlm.hosts import user_errors
from spatial_vlm.remote import write_whole
from spatial_vlm.tasks import find_task, find_worded_task

HARMLESS = ("runs", "demos")
"""Settings that may change between two starts."""
FIGURE = "accuracy.png"


def run(config: Config, workdir: epath.Path, args) -> None:
  with user_errors():
    check(config)
    if config.demos:
      join_demos(config, workdir)
      return
    runs = read_runs(config.runs)
    is_statements = answers_statements(runs[0])
    snapshot(config, workdir, HARMLESS)
  found = compare_runs(runs, is_statements, answer_grammar)
  write_whole(workdir / "results.json", to_json(found))
  runs_report.draw_runs(found, workdir / FIGURE)
  provenance = made_by() | {
    "records": str(runs[0].settings.get("data.records")),
    "rows": ", ".join(run.name for run in runs),
  }
  write_whole(workdir / "report.md", runs_report.runs_report(found, FIGURE, provenance))
  print(runs_report.results_table(found["rows"]))


def join_demos(config: Config, workdir: epath.Path) -> None:
  """Writes report.md and results.json about demos that differ in their seed, and prints their table."""
  demos = seed_report.read_demos(config.demos)
  snapshot(config, workdir, HARMLESS)
  provenance = made_by() | {"demos": ", ".join(str(demo.folder) for demo in demos)}
  write_whole(workdir / "results.json", to_json({"rows": seed_report.joined_rows(demos)}))
  write_whole(workdir / "report.md", seed_report.seed_report(demos, provenance))
  print(seed_report.seed_table(demos))


def made_by() -> dict[str, str]:
  """Returns when a report was made, and by which versions."""
  return {
    "date": datetime.date.today().isoformat(),
    "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
  }


def check(config: Config) -> None:
  """Raises UsageError for a config without runs."""
  if not config.runs and not config.demos:
    raise UsageError("runs is empty; give workdirs of `evaluate`, or of `demo` in demos")


def answers_statements(run: FinishedRun) -> bool:
  """Returns whether the run's task asks for yes or no."""
  words = find_task(run.settings.get("task", "")).first_words
  return words == {1: "Yes", 0: "No"}


def answer_grammar(run: FinishedRun) -> Grammar:
  """Returns the grammar of the run's answers, as its task and template word them."""
  settings = run.settings
  return find_worded_task(settings["task"], settings.get("template", "project"), "plain").grammar


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  files = "report.md and results.json" if config.demos else f"report.md, results.json and {FIGURE}"
  return ending(f"{files} in {workdir}", args.config)
