"""The rate limit is reached with slow answers, whichever teacher gives them."""

import asyncio
import dataclasses
import time

import pytest
from synthesis_runs import CHECK_SETTINGS, MAX_USAGE, PRICES, REQUEST_LIMITS

from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.progress import Verifier
from spatial_vlm.synthesis.run.requests import SynthesisRun, send_questions
from spatial_vlm.synthesis.teachers.openai_chat import OpenAIChatSettings, OpenAIChatTeacher

ANSWER_S = 0.8
RATE = 1200.0
"""Requests a minute: with answers of 0.8 s, 16 in flight reach it, and 8 reach half of it."""


def openai_of(server):
  settings = OpenAIChatSettings(server.model.name, f"{server.url}/v1", 20.0, None, 2048)
  return OpenAIChatTeacher(settings, server.key)


@pytest.mark.parametrize("kind", ["gemini", "openai"])
@pytest.mark.parametrize("concurrency", [None, 4])
def test_slow_answers_do_not_keep_the_run_below_its_rate(
  kind, concurrency, tmp_path, serve, gemini, answers, questions
):
  def answer(*asked):
    time.sleep(ANSWER_S)
    return answers(*asked)

  async def main(run, teacher):
    async with teacher:
      await send_questions(run, teacher)

  server = serve(answer)
  teacher = gemini(server) if kind == "gemini" else openai_of(server)
  limits = dataclasses.replace(
    REQUEST_LIMITS, concurrency=concurrency, max_concurrency=64, requests_per_minute=RATE
  )
  with Journal(tmp_path / "journal") as journal:
    ledger = Ledger(journal, PRICES, MAX_USAGE, None)
    verifier = Verifier(formats.GEMINI, CHECK_SETTINGS, "")
    run = SynthesisRun(questions, journal, verifier, ledger, limits, mixed_versions=False)
    begun = time.monotonic()
    asyncio.run(main(run, teacher))
    rate = len(journal.answers) * 60 / (time.monotonic() - begun)
  if concurrency is None:
    assert 8 < server.stats().max_in_flight <= 24 and rate > 0.55 * RATE
  else:
    assert server.stats().max_in_flight == concurrency and rate < 60 * concurrency / ANSWER_S
