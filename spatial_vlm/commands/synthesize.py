"""Have a teacher write chains of thought for labelled records, and keep the verified ones.

Asks about each record without the label first. If every blind answer is rejected, it asks again with the label as a
hint. An answer is accepted if its conclusion equals the label, its boxes and numbers agree, and no step reveals the
verdict early. Every reply is stored in WORKDIR/journal at once: the same command continues from there and never pays
for an answer twice. --offline checks the stored answers again, for example after a change of --config.checks.

Writes WORKDIR/chains.jsonl (training set of `sft`), accepted.jsonl and rejected.jsonl (model version and reasons of
rejection of each answer), results.json with the ledger, report.md and examples.png.

  spatial-vlm scenes --workdir runs/scenes
  spatial-vlm synthesize --workdir runs/synthesize        # a server on this machine replaces Gemini
  GEMINI_API_KEY=… spatial-vlm synthesize --config configs/synthesize.py:8b --config.data.records=vsr/train.jsonl \\
    --config.data.images=coco/train2017.zip --config.evaluation=vsr/test.jsonl --config.batch.questions=2000

API keys come from the environment: GEMINI_API_KEY or GOOGLE_API_KEY, OPENAI_API_KEY.
"""

import argparse
import asyncio
import sys

from etils import epath

from spatial_vlm import config as config_lib
from spatial_vlm.commands.ending import ending, leaf
from spatial_vlm.config import Config, UsageError, settings_from, snapshot
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.split_guard import refuse_shared_records
from spatial_vlm.hosts import user_errors
from spatial_vlm.inputs import check_inputs
from spatial_vlm.progress import progress_bar
from spatial_vlm.synthesis.run.estimate import EstimateSettings, estimate_cost
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.progress import RecordProgress
from spatial_vlm.synthesis.run.requests import SynthesisRun
from spatial_vlm.synthesis.run.results import write_results
from spatial_vlm.synthesis.setup import build_questions, check, send_missing, start_run
from spatial_vlm.synthesis.teacher_table import read_key
from spatial_vlm.synthesis.verify.selection import SelectionSettings

HARMLESS = (
  *("data.max_bad_share", "data.workers", "data.limit", "attempts.*", "base_url", "api_version"),
  *("model_version", "allow_mixed_versions", "timeout_s", "*concurrency", "requests_per_minute"),
  *("retry.*", "batch.*", "prices.*", "estimate.*", "*_usd", "checks.*", "selection.*"),
  *("examples", "local.fault_share", "policy.batch_size"),
)
"""Settings that may change between two starts: each answer is stored under a hash of its whole question and checked
again by every start."""


INPUTS = ("data.records", "data.images", "evaluation")
"""Leaves that name files to read."""


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  with user_errors():
    check(config)
    journal = Journal(workdir / "journal")
    check_inputs(config, INPUTS)
    source = JsonlSource(
      config.data.records, config.data.images, max_bad_share=config.data.max_bad_share
    )
    remedy = "let `spatial-vlm data` remove them (drop_shared), or evaluate on another set"
    refuse_shared_records(source.pairs, [config.evaluation], remedy)
    key = "" if args.offline else read_key(config)
    questions = build_questions(config, source)
    snapshot(config, workdir, HARMLESS)
  with journal:
    started = start_run(config, questions, journal)
    if not args.offline:
      confirm(config, started, args.yes)
      asyncio.run(send(config, started, key))
    selection = settings_from(SelectionSettings, config.selection)
    written = write_results(
      started,
      selection,
      source.image_files,
      workdir,
      examples=config.examples,
      settings=config_lib.leaves(config),
    )
  print(f"{written.chains:,} chains are in {workdir / 'chains.jsonl'}")
  if written.unsettled:
    raise UsageError(
      f"{written.unsettled:,} of {written.records:,} records are not settled "
      f"({started.stop_reason or 'no answer came'}); the same command continues with them"
    )


def confirm(config: Config, started: SynthesisRun, is_agreed: bool) -> None:
  """Prints the estimated cost and asks above `confirm_usd`; raises UsageError if nobody can agree."""
  settings = settings_from(EstimateSettings, config.estimate)
  estimate = estimate_cost(started, settings, batch=bool(config.batch.questions))
  if not estimate.records:
    return
  print(f"{estimate}; prices are {started.ledger.prices}")
  if estimate.usd <= config.confirm_usd or is_agreed:
    return
  excess = f"more than confirm_usd={config.confirm_usd:.2f}"
  if not sys.stdin.isatty():
    raise UsageError(f"{estimate}, which is {excess}; add --yes to agree")
  if input(f"That is {excess}. Continue? [y/N] ").strip().lower() != "y":
    raise UsageError("nothing was sent")


async def send(config: Config, started: SynthesisRun, key: str) -> None:
  """Sends the missing questions and shows the progress."""
  total, accepted = len(started.questions.indices), 0
  with progress_bar("records", total) as bar:

    def on_settled(progress: RecordProgress) -> None:
      nonlocal accepted
      accepted += progress.accepted
      bar.set_postfix(accepted=accepted, usd=f"{started.ledger.spent_usd:.2f}", refresh=False)
      bar.update()

    await send_missing(config, started, key, on_settled)


def last_words(config: Config, workdir: epath.Path, args: argparse.Namespace) -> str:
  """Returns where the result is, and the commands that read it."""
  chains = leaf("data.conversations", workdir / "chains.jsonl")
  images = leaf("data.images", config.data.images)
  return ending(
    f"chains.jsonl, results.json and report.md in {workdir}",
    args.config,
    ["sft", chains, images],
    [
      "behaviors",
      "--config",
      "configs/behaviors.py:chains",
      leaf("chains", workdir / "chains.jsonl"),
    ],
  )
