"""Have a teacher write chains of thought for labelled records, and keep those that are verified.

Asks about each record blindly first; where every answer is refused, once more with the label as a hint. An answer is
accepted when its conclusion is the label, its boxes and numbers agree, and no step gives the verdict away. Everything
that is received is stored in WORKDIR/journal at once: the same command goes on from there and never asks twice what was
answered; --offline checks what is stored once more, as after a change of --config.checks.

Writes WORKDIR/chains.jsonl (what `sft` learns from), accepted.jsonl and rejected.jsonl (who wrote them, and why they
were refused), results.json with the ledger, report.md and examples.png to look at.

  spatial-vlm scenes --workdir runs/scenes
  spatial-vlm synthesize --workdir runs/synthesize        # a server on this machine answers in Gemini's place
  GEMINI_API_KEY=… spatial-vlm synthesize --config configs/synthesize.py:8b --config.data.records=vsr/train.jsonl \\
    --config.data.images=coco/train2017.zip --config.evaluation=vsr/test.jsonl --config.batch.questions=2000

Keys are read from the environment: GEMINI_API_KEY or GOOGLE_API_KEY, OPENAI_API_KEY.
"""

import argparse
import asyncio
import collections
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from spatial_vlm import config as config_lib
from spatial_vlm.commands.command import Command
from spatial_vlm.config import Config, UsageError, settings_from, snapshot
from spatial_vlm.data import conversations
from spatial_vlm.data.conversations import Conversation
from spatial_vlm.data.records import JsonlSource, Record
from spatial_vlm.data.split_guard import refuse_shared_records
from spatial_vlm.hosts import user_errors
from spatial_vlm.processor.image import png
from spatial_vlm.synthesis import draft as drafts
from spatial_vlm.synthesis.run.ask import Run, ask_all
from spatial_vlm.synthesis.run.ask_batches import BatchPlan, ask_in_batches
from spatial_vlm.synthesis.run.history import History, Judge
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger, Prices
from spatial_vlm.synthesis.run.limiter import Pace
from spatial_vlm.synthesis.run.questions import Attempts, Questions
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.teacher_table import TEACHERS, TeacherKind, identity
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches
from spatial_vlm.synthesis.verify import selection, synthesis_report
from spatial_vlm.synthesis.verify.checks import Limits, Outcome
from spatial_vlm.tasks import statements

HARMLESS = (
  *("data.max_bad_share", "data.workers", "data.limit", "attempts.*", "base_url", "api_version"),
  *("model_version", "allow_mixed_versions", "timeout_s", "concurrency", "requests_per_minute"),
  *("patience.*", "batch.*", "prices.*", "estimate.*", "*_usd", "checks.*", "selection.*"),
  *("examples", "local.faults", "policy.batch_size"),
)
"""Settings that may change between two starts: answers are known by all that was asked, and judged anew."""


def arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--yes", action="store_true", help="ask whatever it is estimated to cost")
  parser.add_argument(
    "--offline", action="store_true", help="ask nothing: check and report what is stored"
  )


def run(config: Config, workdir: epath.Path, args: argparse.Namespace) -> None:
  with user_errors():
    check(config)
    source = JsonlSource(
      config.data.records, config.data.images, max_bad_share=config.data.max_bad_share
    )
    remedy = "let `spatial-vlm data` remove them (drop_shared), or evaluate on another set"
    refuse_shared_records(source.pairs, [config.evaluation], remedy)
    teacher = TEACHERS[config.teacher]
    key = "" if args.offline else teacher.key(config)
    questions = Questions(
      source,
      teacher.form,
      settings_from(Attempts, config.attempts),
      identity=identity(config),
      seed=config.seed,
      limit=config.data.limit,
      workers=config.data.workers,
    )
    journal = Journal(workdir / "journal")
    snapshot(config, workdir, HARMLESS)
  with journal:
    begun = Run(
      questions,
      journal,
      Judge(teacher.form, settings_from(Limits, config.checks), config.model_version),
      Ledger(journal, settings_from(Prices, config.prices), most(config), config.budget_usd),
      pace(config),
      config.allow_mixed_versions,
    )
    if not args.offline:
      confirm(config, begun, args.yes)
      asyncio.run(ask(config, begun, teacher, key))
    write(config, begun, source, workdir)


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work, or cannot work together."""
  if config.teacher not in TEACHERS:
    raise UsageError(f"teacher is {config.teacher!r}; choose one of {', '.join(TEACHERS)}")
  TEACHERS[config.teacher].check(config)
  settings_from(Limits, config.checks)
  settings_from(selection.Settings, config.selection)
  settings_from(Prices, config.prices)
  pace(config)
  if config.batch.questions:
    if not TEACHERS[config.teacher].has_batches:
      raise UsageError(
        f"batch.questions is {config.batch.questions}, but the teacher {config.teacher} knows no batches; set it to 0"
      )
    settings_from(BatchPlan, config.batch)
  amounts = {
    "data.limit": config.data.limit,
    "examples": config.examples,
    "confirm_usd": config.confirm_usd,
    "budget_usd": config.budget_usd or 0,
  }
  if negative := {name: amount for name, amount in amounts.items() if amount < 0}:
    said = " and ".join(f"{name} is {amount}" for name, amount in negative.items())
    raise UsageError(f"{said}; give numbers from 0 on")
  if config.attempts.hinted and TEACHERS[config.teacher].form is drafts.CHAIN:
    raise UsageError(
      f"attempts.hinted is {config.attempts.hinted}: a policy takes no hint; set it to 0 and raise attempts.blind"
    )


def most(config: Config) -> Usage:
  """The most that one question may take."""
  return Usage(config.estimate.most_prompt_tokens, 0, config.max_output_tokens, 0)


def pace(config: Config) -> Pace:
  return settings_from(
    Pace,
    config.patience,
    concurrency=config.concurrency,
    requests_per_minute=config.requests_per_minute,
  )


def confirm(config: Config, begun: Run, is_agreed: bool) -> None:
  """Says what the rest will cost, and asks above `confirm_usd`; raises UsageError where nobody can agree."""
  estimate = config.estimate
  histories = (begun.history(number) for number in begun.questions.numbers)
  attempts_left = [len(begun.questions.attempts) - h.open for h in histories if h.open is not None]
  if not attempts_left:
    return
  count = sum(1 + estimate.second_share * (left > 1) for left in attempts_left)
  each = begun.ledger.mean() or Usage(estimate.prompt_tokens, 0, estimate.output_tokens, 0)
  usd = count * begun.ledger.prices.usd(each, batch=bool(config.batch.questions))
  text = (
    f"{len(attempts_left):,} records are left: about {count:,.0f} questions of {each.prompt:,} tokens with answers of "
    f"{each.answer + each.thoughts:,}, {usd:.2f} USD; {begun.ledger.spent_usd:.2f} USD are spent"
  )
  print(text)
  if usd <= config.confirm_usd or is_agreed:
    return
  excess = f"more than confirm_usd={config.confirm_usd:.2f}"
  if not sys.stdin.isatty():
    raise UsageError(f"{text}, which is {excess}; add --yes to agree")
  if input(f"That is {excess}. Go on? [y/N] ").strip().lower() != "y":
    raise UsageError("nothing was asked")


async def ask(config: Config, begun: Run, teacher: TeacherKind, key: str) -> None:
  """Asks what is missing, with a bar that shows how it goes."""
  total = len(begun.questions.numbers)
  accepted = 0
  with tqdm(total=total, desc="records", dynamic_ncols=True, mininterval=0.5) as bar:

    def on_settled(settled: History) -> None:
      nonlocal accepted
      accepted += settled.accepted
      bar.set_postfix(accepted=accepted, usd=f"{begun.ledger.spent_usd:.2f}", refresh=False)
      bar.update()

    async with teacher.open(config, key) as opened:
      if not config.batch.questions:
        await ask_all(begun, opened, on_settled)
      else:
        plan = settings_from(BatchPlan, config.batch)
        await ask_in_batches(begun, GeminiBatches(opened), plan, on_settled)


def write(config: Config, begun: Run, source: JsonlSource, workdir: epath.Path) -> None:
  """Writes the set and all that is to know of it; raises UsageError, in the end, where records are not settled."""
  histories = [begun.history(number) for number in begun.questions.numbers]
  outcomes = [outcome for history in histories for outcome in history.outcomes]
  kept, dropped = selection.select(outcomes, settings_from(selection.Settings, config.selection))
  if not config.allow_mixed_versions:
    refuse_mixed(kept)
  skipped = [outcome for outcome in outcomes if not outcome.accepted] + dropped
  keys = {
    (o.record, o.attempt): begun.questions.key(h.number, o.attempt)
    for h in histories
    for o in h.outcomes
  }
  conversations.write(workdir / "chains.jsonl", map(conversation, kept))
  write_lines(workdir / "accepted.jsonl", (described(outcome, keys) for outcome in kept))
  write_lines(workdir / "rejected.jsonl", (described(outcome, keys) for outcome in skipped))
  unsettled = sum(history.open is not None for history in histories)
  notes = {
    "ledger": begun.ledger.summary(),
    "unsettled": unsettled,
    "skipped": [str(bad) for bad in begun.questions.bad],
    "settings": config_lib.leaves(config),
  }
  summary = synthesis_report.summarize([*kept, *skipped], begun.ledger.spent_usd)
  (workdir / "results.json").write_text(json.dumps(summary | notes, indent=2) + "\n")
  examples = synthesis_report.choose_examples(
    [*kept, *skipped], config.examples, config.examples // 2
  )
  (workdir / "report.md").write_text(synthesis_report.markdown(summary, examples, "examples.png"))
  if examples:
    sheet = synthesis_report.example_sheet(examples, source.image_files.open)
    (workdir / "examples.png").write_bytes(png(sheet))
  print(f"{len(kept):,} chains, results.json and report.md are in {workdir}")
  if unsettled:
    raise UsageError(
      f"{unsettled:,} of {len(histories):,} records are not settled ({begun.stopped or 'no answer came'}); the same "
      "command goes on with them"
    )


def refuse_mixed(kept: Sequence[Outcome]) -> None:
  """Raises UsageError for chains of several teachers."""
  versions = collections.Counter(outcome.model_version for outcome in kept)
  if len(versions) > 1:
    said = ", ".join(f"{version} ({count:,} chains)" for version, count in versions.most_common())
    raise UsageError(
      f"several versions of the model have answered: {said}; set model_version to the one that counts, or "
      "allow_mixed_versions"
    )


def conversation(outcome: Outcome) -> Conversation:
  """What a policy learns from an accepted answer."""
  assert outcome.draft is not None
  question = statements.question(outcome.record.caption, "chain")
  return Conversation(outcome.record.image, question, drafts.chain(outcome.draft))


def described(outcome: Outcome, keys: Mapping[tuple[Record, int], str]) -> dict[str, Any]:
  """A line on an answer: on what, by whom, and why it was refused."""
  return {
    **outcome.record.to_json(),
    "key": keys[outcome.record, outcome.attempt],
    "attempt": outcome.attempt,
    "hinted": outcome.hinted,
    "model_version": outcome.model_version,
    "rejections": [rejection._asdict() for rejection in outcome.rejections],
    "text": outcome.text,
  }


def write_lines(path: epath.Path, lines: Iterable[Mapping[str, Any]]) -> None:
  path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


COMMAND = Command("synthesize", run, check=check, add_arguments=arguments)
