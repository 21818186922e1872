"""Estimates by hand."""

import pytest
from synthesis_runs import CHECK_SETTINGS, MAX_USAGE, PRICES, REQUEST_LIMITS, SMALL

from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.run.estimate import EstimateSettings, estimate_cost
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.progress import Verifier
from spatial_vlm.synthesis.run.requests import SynthesisRun
from spatial_vlm.synthesis.teacher import Reply, Usage

SETTINGS = EstimateSettings(prompt_tokens=1000, output_tokens=200, second_attempt_share=0.25)


def test_estimates_use_settings_until_replies_give_a_mean(questions, tmp_path):
  with Journal(tmp_path) as journal:
    run = SynthesisRun(
      questions,
      journal,
      Verifier(formats.GEMINI, CHECK_SETTINGS, ""),
      Ledger(journal, PRICES, MAX_USAGE, None),
      REQUEST_LIMITS,
      mixed_versions=False,
    )
    before = estimate_cost(run, SETTINGS, batch=False)
    assert (before.records, before.questions) == (SMALL, 1.25 * SMALL)
    assert before.usd == pytest.approx(1.25 * SMALL * (1000 * 1 + 200 * 10) / 1e6)
    assert estimate_cost(run, SETTINGS, batch=True).usd == pytest.approx(before.usd / 2)
    journal.add_reply(questions.key(0, 0), Reply("no", "STOP", "m", Usage(400, 0, 60, 40), {}))
    after = estimate_cost(run, SETTINGS, batch=False)
    # One attempt at the first record is left, and two at each other one.
    assert (after.records, after.questions) == (SMALL, 1 + 1.25 * (SMALL - 1))
    assert after.usd == pytest.approx(after.questions * (400 * 1 + 100 * 10) / 1e6)
    assert "400 tokens with answers of 100" in str(after) and "0.00 USD are spent" in str(after)
