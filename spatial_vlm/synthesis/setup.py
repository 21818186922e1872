"""Checks the config of `synthesize`, builds a run from it and sends its questions."""

import datetime
from collections.abc import Callable

from spatial_vlm.config import Config, UsageError, settings_from
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.synthesis.run.batch_requests import BatchSettings, send_in_batches
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger, Prices
from spatial_vlm.synthesis.run.limiter import RequestLimits
from spatial_vlm.synthesis.run.progress import RecordProgress, Verifier
from spatial_vlm.synthesis.run.questions import Attempts, Questions
from spatial_vlm.synthesis.run.requests import SynthesisRun, send_questions
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.teacher_table import find_teacher, identity
from spatial_vlm.synthesis.teachers.gemini import GeminiTeacher
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches
from spatial_vlm.synthesis.verify.check_settings import CheckSettings
from spatial_vlm.synthesis.verify.limits import describe_limits
from spatial_vlm.synthesis.verify.selection import SelectionSettings


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work, alone or together."""
  teacher = find_teacher(config.teacher)
  teacher.check(config)
  settings_from(CheckSettings, config.checks)
  settings_from(SelectionSettings, config.selection)
  read_prices(config, datetime.date.today())
  request_limits(config)
  if config.batch.questions:
    if not teacher.has_batches:
      raise UsageError(
        f"batch.questions is {config.batch.questions}, but the teacher {config.teacher} has no batches; set it to 0"
      )
    settings_from(BatchSettings, config.batch)
  if config.attempts.hinted and not teacher.takes_hints:
    raise UsageError(
      f"attempts.hinted is {config.attempts.hinted}, but a policy takes no hint; set it to 0 and raise attempts.blind"
    )


def build_questions(config: Config, source: JsonlSource) -> Questions:
  """Builds the questions about the records of `source`, which checks all images; they tell the limits of the checks."""
  limits = describe_limits(settings_from(CheckSettings, config.checks))
  return Questions(
    source,
    find_teacher(config.teacher).response_format.with_limits(limits),
    settings_from(Attempts, config.attempts),
    identity=identity(config),
    seed=config.seed,
    limit=config.data.limit,
    workers=config.data.workers,
  )


def read_prices(config: Config, day: datetime.date) -> Prices:
  """Returns the prices of the config; those left at none come from the table of models, for this day.

  Raises UsageError for a model that the table does not list.
  """
  listed = find_teacher(config.teacher).listed_prices(config, day)
  names = ("input_usd", "cached_usd", "output_usd")
  given = {name: config.prices[name] for name in names if config.prices[name] is not None}
  if missing := [name for name in names if name not in listed | given]:
    leaves = ", ".join(f"prices.{name}" for name in missing)
    raise UsageError(
      f"the table of models lists no prices of {config.model!r}; give {leaves} in USD per million tokens, 0 for a "
      "server of your own"
    )
  return Prices(**(listed | given), batch_share=config.prices.batch_share)


def request_limits(config: Config) -> RequestLimits:
  """Reads rate limits and retry policy."""
  return settings_from(
    RequestLimits,
    config.retry,
    concurrency=config.concurrency,
    max_concurrency=config.max_concurrency,
    requests_per_minute=config.requests_per_minute,
  )


def start_run(config: Config, questions: Questions, journal: Journal) -> SynthesisRun:
  """Builds the state of one start; `journal` is open."""
  checks = settings_from(CheckSettings, config.checks)
  max_usage = Usage(config.estimate.max_prompt_tokens, 0, config.max_output_tokens, 0)
  return SynthesisRun(
    questions,
    journal,
    Verifier(questions.response_format, checks, config.model_version),
    Ledger(journal, read_prices(config, datetime.date.today()), max_usage, config.budget_usd),
    request_limits(config),
    config.allow_mixed_versions,
  )


async def send_missing(
  config: Config, run: SynthesisRun, key: str, on_settled: Callable[[RecordProgress], None]
) -> None:
  """Sends the questions without a stored answer, one by one or in batches, as the config says.

  `on_settled` is called with the progress of each record that gets its last answer.
  """
  async with find_teacher(config.teacher).open(config, key) as teacher:
    if config.batch.questions:
      assert isinstance(teacher, GeminiTeacher)  # `check` refuses batches of other teachers
      settings = settings_from(BatchSettings, config.batch)
      await send_in_batches(run, GeminiBatches(teacher), settings, on_settled)
    else:
      await send_questions(run, teacher, on_settled)
