"""Opens the teacher that a config group names, for questions about text."""

import asyncio
import contextlib
import datetime
from collections.abc import Iterator

from etils import epath

from spatial_vlm.config import Config, UsageError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.text_answers import TextAsker, TextRun
from spatial_vlm.synthesis.setup import read_prices, request_limits
from spatial_vlm.synthesis.teacher import Usage
from spatial_vlm.synthesis.teacher_table import find_teacher, identity, read_key

NO_TEXT = "local"
"""The teacher of rendered scenes, which answers about their images alone."""


def check_text_teacher(config: Config) -> None:
  """Raises UsageError for a config group that cannot work."""
  if config.teacher == NO_TEXT:
    raise UsageError(
      f"ask.teacher is {NO_TEXT!r}, which knows rendered scenes only; choose gemini, openai or policy"
    )
  find_teacher(config.teacher).check(config)
  request_limits(config)
  read_prices(config, datetime.date.today())


def read_text_key(config: Config) -> str:
  """Returns the API key; raises UsageError for a missing key, and for a model that has ended or does not exist."""
  identity(config)
  return read_key(config)


@contextlib.contextmanager
def open_text_teacher(config: Config, key: str, folder: epath.Path) -> Iterator[TextAsker]:
  """Opens teacher and journal.

  Args:
    config: group with the settings of a teacher, as in `configs/synthesize.py`.
    key: as `read_text_key` returns it.
    folder: of the journal.
  """
  setup = find_teacher(config.teacher)
  prices = read_prices(config, datetime.date.today())
  max_prompt_tokens = config.estimate.max_prompt_tokens
  max_usage = Usage(max_prompt_tokens, 0, config.max_output_tokens, 0)
  with Journal(folder) as journal, asyncio.Runner() as loop:
    ledger = Ledger(journal, prices, max_usage, config.budget_usd)
    run = TextRun(journal, ledger, request_limits(config))
    opened = setup.open(config, key)
    teacher = loop.run(_enter(opened))
    try:
      yield TextAsker(
        run,
        teacher,
        loop,
        identity(config),
        config.seed,
        setup.takes_instructions,
        max_prompt_tokens,
      )
    finally:
      loop.run(_exit(opened))


async def _enter(opened: contextlib.AbstractAsyncContextManager):
  return await opened.__aenter__()


async def _exit(opened: contextlib.AbstractAsyncContextManager) -> None:
  await opened.__aexit__(None, None, None)
