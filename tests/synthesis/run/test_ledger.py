"""Costs: hand-computed prices, and a budget that is never exceeded."""

import math

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger, Prices
from spatial_vlm.synthesis.teacher import Reply, Usage, sum_usage

PRICES = Prices(input_usd=1.0, cached_usd=0.1, output_usd=10.0, batch_share=0.5)
MAX_USAGE = Usage(prompt=100_000, cached=0, answer=90_000, thoughts=0)  # one dollar
SPENT = Usage(prompt=100_000, cached=50_000, answer=10_000, thoughts=9_500)  # a quarter of it


@pytest.fixture
def journal(tmp_path):
  with Journal(tmp_path) as journal:
    yield journal


def reply(usage=SPENT):
  return Reply("Yes.", "STOP", "v", usage, raw={})


def test_prices_by_hand():
  assert PRICES.usd(MAX_USAGE, batch=False) == pytest.approx(1.0)
  assert PRICES.usd(SPENT, batch=False) == pytest.approx(0.05 + 0.005 + 0.195)
  assert PRICES.usd(SPENT, batch=True) == pytest.approx(0.125)
  assert sum_usage([MAX_USAGE, SPENT, SPENT]) == (300_000, 100_000, 110_000, 19_000)
  assert sum_usage([]) == (0, 0, 0, 0)


def test_requests_in_flight_count_at_their_maximum_cost(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=3.0)
  assert (
    ledger.affordable_questions(batch=False) == 3 and ledger.affordable_questions(batch=True) == 6
  )
  with ledger.reserve(), ledger.reserve():
    assert ledger.affordable_questions(batch=False) == 1 and ledger.reserved_usd == pytest.approx(2)
    journal.add_reply("a", reply())
  assert ledger.spent_usd == pytest.approx(0.25) and ledger.affordable_questions(batch=False) == 2
  with pytest.raises(OSError), ledger.reserve():
    raise OSError
  assert ledger.reserved_usd == 0


def test_questions_without_an_answer_stay_set_aside(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=3.0)
  journal.add_lost("a", "cut")
  journal.interrupted.append("b")
  assert (
    ledger.unconfirmed_usd == pytest.approx(2) and ledger.affordable_questions(batch=False) == 1
  )
  found = ledger.summary()
  assert found["lost"] == ["a"] and found["in_flight_when_stopped"] == ["b"]
  assert found["usd"] == 0 and found["doubtful_usd_at_most"] == pytest.approx(2)


def test_open_batches_are_in_flight_until_answered(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=3.0)
  journal.add_job("job", ["a", "b", "c", "d"])
  assert ledger.reserved_usd == pytest.approx(2.0) and ledger.affordable_questions(batch=True) == 2
  journal.add_reply("a", reply(), batch=True)
  assert ledger.reserved_usd == pytest.approx(1.5) and ledger.spent_usd == pytest.approx(0.125)
  journal.end_job("job", "SUCCEEDED")
  assert ledger.reserved_usd == 0
  assert ledger.summary()["batch_answers"] == 1


def test_a_reply_whose_tokens_nobody_tells_counts_at_the_maximum(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=3.0)
  journal.add_reply("a", reply(Usage(0, 0, 0, 0)))
  assert ledger.spent_usd == pytest.approx(1.0) and ledger.affordable_questions(batch=False) == 2
  assert ledger.summary()["answers_without_usage"] == 1


def test_the_dearest_reply_is_the_maximum(journal):
  """A server that ignores the limit on tokens would do so again."""
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=12.0)
  journal.add_reply("a", reply(Usage(0, 0, 400_000, 0)))  # four dollars
  with ledger.reserve():
    assert ledger.affordable_questions(batch=False) == 1
    assert ledger.affordable_questions(batch=True) == 2


def test_questions_wait_for_the_first_reply_and_for_those_in_flight(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, budget_usd=2.3)
  assert not ledger.must_wait
  with ledger.reserve():
    assert ledger.must_wait, "the first reply shows what a question costs"
  journal.add_reply("a", reply())
  with ledger.reserve():
    assert not ledger.must_wait
    with ledger.reserve():
      assert ledger.must_wait and ledger.affordable_questions(batch=False) == 0
  assert not ledger.must_wait and ledger.affordable_questions(batch=False) == 2


def test_without_a_budget_or_a_price_nothing_is_limited(journal):
  assert Ledger(journal, PRICES, MAX_USAGE, None).affordable_questions(batch=False) == math.inf
  assert (
    Ledger(journal, Prices(0, 0, 0, 0.5), MAX_USAGE, 0.0).affordable_questions(batch=False)
    == math.inf
  )
  assert Ledger(journal, PRICES, MAX_USAGE, 0.0).affordable_questions(batch=False) == 0


def test_the_mean_of_the_answers(journal):
  ledger = Ledger(journal, PRICES, MAX_USAGE, None)
  assert ledger.mean_usage() is None
  journal.add_reply("a", reply(Usage(10, 0, 4, 1)))
  journal.add_reply("b", reply(Usage(20, 4, 4, 2)))
  assert ledger.mean_usage() == Usage(15, 2, 4, 2)


def test_negative_prices_are_refused():
  with pytest.raises(UsageError, match="none may be negative"):
    Prices(-1, 0, 0, 1)
