"""A folder of scenes, a teacher that makes mistakes, and runs that ask it."""

import asyncio

import pytest
from synthesis_runs import (
  CHECK_SETTINGS,
  MAX_USAGE,
  PRICES,
  REQUEST_LIMITS,
  SMALL,
  questions_on,
  scenes,
)

from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.run.batch_requests import send_in_batches
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.progress import Verifier
from spatial_vlm.synthesis.run.requests import SynthesisRun, send_questions
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return scenes(tmp_path_factory.mktemp("scenes"), SMALL)


@pytest.fixture(scope="module")
def answers(folder):
  """A teacher with a mistake in a third of its blind answers."""
  return SceneAnswers(folder, "train", 1 / 3)


@pytest.fixture(scope="module")
def questions(folder):
  return questions_on(folder)


@pytest.fixture
def start(tmp_path, gemini):
  """Runs one start in the test folder: `start(questions, server, …)` returns the finished run."""

  def begin(
    questions, server, budget_usd=None, model_version="", mixed=False, plan=None, **settings
  ):
    async def main(run):
      async with gemini(server, **settings) as teacher:
        if plan is None:
          await send_questions(run, teacher)
        else:
          await send_in_batches(run, GeminiBatches(teacher), plan)

    with Journal(tmp_path / "journal") as journal:
      run = SynthesisRun(
        questions,
        journal,
        Verifier(formats.GEMINI, CHECK_SETTINGS, model_version),
        Ledger(journal, PRICES, MAX_USAGE, budget_usd),
        REQUEST_LIMITS,
        mixed,
      )
      asyncio.run(main(run))
      return run

  return begin
