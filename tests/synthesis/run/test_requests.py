"""Runs of single questions: complete despite faults, within the budget, and nothing sent twice."""

import collections
import dataclasses
import itertools
import math
import time

import pytest
from synthesis_runs import (
  LARGE,
  MAX_USAGE,
  PRICES,
  REQUEST_LIMITS,
  SMALL,
  Cut,
  faults,
  progress,
  questions_on,
  scenes,
  settled,
)

from spatial_vlm.config import UsageError
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.hashing import hash_fraction
from spatial_vlm.synthesis.local.faults import Faults
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.run.batch_requests import BatchSettings
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.questions import Attempts, Questions
from spatial_vlm.synthesis.teacher import Reply


def test_records_are_asked_blind_first_and_with_a_hint_if_rejected(
  start, serve, answers, questions
):
  server = serve(answers)
  run = start(questions, server)
  found = settled(run)
  attempts = collections.Counter(tuple(hinted) for _, hinted, _ in found.values())
  assert set(attempts) == {(False,), (False, True)}
  assert 10 < attempts[False, True] < 30
  assert sum(accepted for accepted, *_ in found.values()) >= SMALL - 6
  assert (
    server.stats().requests.total() == len(run.journal.answers) == SMALL + attempts[False, True]
  )
  assert server.stats().max_in_flight <= REQUEST_LIMITS.concurrency


def test_a_second_start_asks_nothing_and_finds_the_same(start, serve, answers, questions):
  first = settled(start(questions, serve(answers)))
  server = serve(answers)
  assert settled(start(questions, server)) == first and not server.stats().requests


def test_transport_faults_change_only_the_ledger(start, serve, answers, questions, tmp_path):
  undisturbed = settled(start(questions, serve(answers)))
  (tmp_path / "journal").rename(tmp_path / "undisturbed")
  server = serve(answers, faults=faults(0.4))
  run = start(questions, server)
  assert settled(run) == undisturbed
  stats = server.stats()
  twice = {question: count - 1 for question, count in stats.answers.items() if count > 1}
  assert 0 < sum(twice.values()) == len(run.journal.lost), "billed twice, and listed"
  assert stats.tokens >= sum(sum(each.usage) - each.usage.cached for each in run.journal.billed)


@pytest.mark.slow
def test_a_thousand_records_with_a_fifth_of_faults_end_complete(start, serve, tmp_path_factory):
  folder = scenes(tmp_path_factory.mktemp("thousand"), LARGE)
  server = serve(SceneAnswers(folder, "train", 0.3), faults=faults(0.2))
  run = start(questions_on(folder), server)
  found = settled(run)
  assert len(found) == LARGE and sum(accepted for accepted, *_ in found.values()) > 0.9 * LARGE
  surplus = server.stats().answers.total() - len(run.journal.answers)
  assert 0 < surplus == len(run.journal.lost) and not run.unanswered


def test_a_stop_costs_at_most_what_was_in_flight(start, serve, answers, questions, monkeypatch):
  server = serve(answers)
  write, calls = Journal.add_reply, itertools.count(1)

  def cut_off(journal, key, reply, batch=False):
    if next(calls) > 20:
      raise Cut
    write(journal, key, reply, batch)

  with monkeypatch.context() as patch, pytest.raises(Cut):
    patch.setattr(Journal, "add_reply", cut_off)
    start(questions, server)
  run = start(questions, server)
  assert len(settled(run)) == SMALL
  counts = server.stats().answers
  twice = [question for question, count in counts.items() if count > 1]
  assert 1 <= len(twice) <= REQUEST_LIMITS.concurrency and max(counts.values()) == 2
  assert len(run.journal.interrupted) >= len(twice), "what may have been billed twice is listed"
  assert len(run.journal.interrupted) <= REQUEST_LIMITS.concurrency


@pytest.mark.parametrize(
  ("plan", "budget_usd"), [(None, 0.05), (BatchSettings(questions=10, poll_s=0.0), 0.025)]
)
def test_a_budget_is_kept_and_a_higher_one_resumes(
  start, serve, answers, questions, plan, budget_usd
):
  server = serve(answers)
  run = start(questions, server, budget_usd=budget_usd, plan=plan)
  assert run.stop_reason.startswith(f"budget_usd={budget_usd} allows no further question")
  assert 0 < run.ledger.spent_usd <= budget_usd
  if plan is None:  # questions in flight hold back others only until they end
    assert run.ledger.spent_usd > budget_usd - PRICES.usd(MAX_USAGE, batch=False)
  max_at_once = int(budget_usd / PRICES.usd(MAX_USAGE, batch=True))
  assert all(len(keys) <= max_at_once for keys in run.journal.jobs.values())
  left = sum(record.next_attempt is not None for record in progress(run))
  assert 0 < left < SMALL
  run = start(questions, server, plan=plan)
  assert len(settled(run)) == SMALL and run.ledger.spent_usd > budget_usd
  assert set(server.stats().answers.values()) == {1}


def test_the_servers_retry_delay_is_respected(start, serve, answers, folder):
  """The server asks each question once to retry after a third of a second; the default delay is a hundredth."""
  server = serve(answers, faults=Faults(rate_limited=1.0, retry_after_s=0.3, clears_after=1))
  source = JsonlSource(folder / "train.jsonl", folder / "images")
  one = Questions(source, formats.GEMINI, Attempts(1, 0), identity={}, seed=0, limit=1)
  begun = time.monotonic()
  assert len(settled(start(one, server))) == 1
  assert time.monotonic() - begun >= 0.3


def test_after_a_stop_nothing_is_sent(start, serve, answers, questions):
  run = start(questions, serve(answers))
  assert run.allowed_questions(batch=False) == run.allowed_questions(batch=True) == math.inf
  run.stop("enough")
  run.stop("another reason")
  assert (
    run.allowed_questions(batch=False) == run.allowed_questions(batch=True) == 0
    and run.stop_reason == "enough"
  )


def test_an_unreachable_server_ends_the_run_soon(start, serve, answers, questions):
  server = serve(answers, faults=Faults(unavailable=1.0, clears_after=10**6))
  run = start(questions, server)
  assert "in a row failed, the last one with: 503" in run.stop_reason
  assert 20 <= run.unanswered <= 28 and not run.journal.answers and not run.journal.interrupted


def test_a_wrong_key_ends_the_run_at_once_and_stays_secret(start, serve, answers, questions):
  server = serve(answers)
  with pytest.raises(UsageError, match="API key not valid") as caught:
    start(questions, server, key="SECRET-7f3a")
  assert "SECRET-7f3a" not in str(caught.value) and not server.stats().answers
  run = start(questions, server)
  assert len(settled(run)) == SMALL
  assert len(run.journal.interrupted) < REQUEST_LIMITS.concurrency, (
    "what the refusal itself cut off"
  )


def test_another_version_ends_the_run_unless_it_is_asked_for(start, serve, answers, questions):
  server = serve(answers, faults=Faults(other_version=0.3))
  run = start(questions, server)
  assert "local-00" in run.stop_reason and "allow_mixed_versions" in run.stop_reason
  assert len(run.journal.answers) < SMALL
  chosen = start(questions, server, model_version="gemini-2.5-local-001")
  kept = {a.model_version for r in progress(chosen) for a in r.answers if a.accepted}
  refused = {
    a.rejections[0].check
    for r in progress(chosen)
    for a in r.answers
    if a.model_version == "gemini-2.5-local-002"
  }
  assert kept == {"gemini-2.5-local-001"} and refused == {"version"}
  mixed = start(questions, server, mixed=True)
  assert len({a.model_version for r in progress(mixed) for a in r.answers if a.accepted}) == 2


def test_a_question_that_is_refused_is_settled(start, serve, answers, questions):
  def answer(image, system, text, seed):
    if hash_fraction(image) < 0.2:
      raise ValueError("too large an image")
    return answers(image, system, text, seed)

  run = start(questions, serve(answer))
  assert len(settled(run)) == SMALL
  refused = [r.answers[-1] for r in progress(run) if r.answers[-1].text is None]
  assert 0 < len(refused) < SMALL / 2
  assert {r.check for each in refused for r in each.rejections} == {"refused"}


def test_refusals_that_stop_a_run_are_not_final(start, serve, answers, questions):
  def answer(image, system, text, seed):
    raise ValueError("no images today")

  run = start(questions, serve(answer))
  assert "in a row failed" in run.stop_reason and "no images today" in run.stop_reason
  assert not run.ledger.spent_usd and not run.ledger.unconfirmed_usd
  assert not run.journal.answers and not any(record.answers for record in progress(run))
  mended = start(questions, serve(answers))
  assert len(settled(mended)) == SMALL and not mended.stop_reason


def test_answers_that_nobody_can_read_stop_the_run(start, serve, questions):
  """Each of them is paid for."""
  run = start(questions, serve(lambda image, system, text, seed: "It is so."))
  assert "20 questions in a row failed, the last one with: the answer is not" in run.stop_reason
  assert 20 <= len(run.journal.billed) <= 20 + REQUEST_LIMITS.concurrency < SMALL


def test_a_wait_of_a_day_stops_the_run(start, serve, answers, questions):
  run = start(questions, serve(answers, faults=Faults(rate_limited=1.0, retry_after_s=86_400)))
  assert "the server asks to wait 24.0 hours (429" in run.stop_reason
  assert not run.journal.answers


def test_a_server_that_ignores_the_limit_on_tokens_overshoots_by_one_answer(
  start, serve, answers, questions
):
  """The budget allows twenty answers within the limit at once; each costs ten times as much."""
  each_usd = PRICES.usd(MAX_USAGE, batch=False)

  def dear(image, system, text, seed):
    return answers(image, system, text, seed) + 10 * MAX_USAGE.answer * " word"

  run = start(questions, serve(dear), budget_usd=20 * each_usd)
  assert run.stop_reason.startswith("budget_usd")
  assert 10 * each_usd < run.ledger.spent_usd <= 31 * each_usd


def test_raw_replies_are_kept_and_read_again(start, serve, answers, questions, gemini, tmp_path):
  server = serve(answers)
  run = start(questions, server)
  teacher = gemini(server)
  with Journal(tmp_path / "journal") as journal:
    read = {key: teacher.read_reply(raw) for key, raw in journal.raw()}
  assert read.keys() == run.journal.answers.keys()
  assert {
    key: dataclasses.replace(reply, raw={}) for key, reply in read.items()
  } == run.journal.answers
  assert all(isinstance(reply, Reply) for reply in read.values())
