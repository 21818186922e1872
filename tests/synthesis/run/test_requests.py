"""Runs against the local server: complete whatever happens on the way, within the budget, and nothing asked twice."""

import asyncio
import collections
import dataclasses
import itertools
import math
import time

import pytest
from etils import epath

from spatial_vlm.commands.scenes import write_split
from spatial_vlm.config import UsageError
from spatial_vlm.data.records import JsonlSource
from spatial_vlm.data.relations import RELATIONS
from spatial_vlm.data.scenes.source import SceneSource
from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.local.faults import JOB, TRANSIENT, Faults
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.run.batch_requests import BatchSettings, send_in_batches
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger, Prices
from spatial_vlm.synthesis.run.limiter import RequestLimits
from spatial_vlm.synthesis.run.progress import Verifier
from spatial_vlm.synthesis.run.questions import Attempts, Questions
from spatial_vlm.synthesis.run.requests import send_questions
from spatial_vlm.synthesis.teacher import Reply, Usage
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches
from spatial_vlm.synthesis.verify.check_settings import CheckSettings

LIMITS = CheckSettings(8, 120, 0.0005, 0.95, 0, 60, tuple(RELATIONS), ())
PRICES = Prices(input_usd=1.0, cached_usd=0.5, output_usd=10.0, batch_share=0.5)
MOST = Usage(2000, 0, 1000, 0)
PACE = RequestLimits(8, 600_000.0, tries=4, initial_delay_s=0.01, max_delay_s=0.02)
SMALL, LARGE = 60, 1000


def scenes(path, count):
  (path / "images").mkdir()
  write_split(SceneSource("train", 2, count, image_size=16), epath.Path(path))
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return scenes(tmp_path_factory.mktemp("scenes"), SMALL)


@pytest.fixture(scope="module")
def answers(folder):
  """A teacher of whose blind answers a third have a slip."""
  return SceneAnswers(folder, "train", 1 / 3)


def questions_on(folder, attempts=Attempts(1, 1)):  # noqa: B008 (an immutable default)
  source = JsonlSource(folder / "train.jsonl", folder / "images")
  return Questions(source, formats.GEMINI, attempts, identity={"model": "local"}, seed=0)


@pytest.fixture(scope="module")
def questions(folder):
  return questions_on(folder)


@pytest.fixture
def start(tmp_path, gemini):
  """One start in the workdir of the test: `start(questions, server, …)` -> the run, after its end."""

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
      run = Run(
        questions,
        journal,
        Verifier(formats.GEMINI, LIMITS, model_version),
        Ledger(journal, PRICES, MOST, budget_usd),
        PACE,
        mixed,
      )
      asyncio.run(main(run))
      return run

  return begin


def histories(run):
  return [run.history(number) for number in run.questions.indices]


def settled(run):
  """All records, with what became of them."""
  found = histories(run)
  assert all(history.open is None for history in found)
  return {
    h.number: (h.accepted, [o.hinted for o in h.outcomes], h.outcomes[-1].text) for h in found
  }


def faults(share):
  return Faults(**dict.fromkeys(TRANSIENT, share / len(TRANSIENT)), retry_after_s=0.02, slow_s=0.05)


def test_records_are_asked_blindly_and_only_the_refused_ones_with_a_hint(
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
  assert server.stats().max_in_flight <= PACE.concurrency


def test_a_second_start_asks_nothing_and_finds_the_same(start, serve, answers, questions):
  first = settled(start(questions, serve(answers)))
  server = serve(answers)
  assert settled(start(questions, server)) == first and not server.stats().requests


def test_faults_on_the_way_change_nothing_but_the_ledger(
  start, serve, answers, questions, tmp_path
):
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


class Cut(Exception):
  """In place of a kill."""


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
  assert 1 <= len(twice) <= PACE.concurrency and max(counts.values()) == 2
  assert len(run.journal.interrupted) >= len(twice), "what may have been billed twice is listed"
  assert len(run.journal.interrupted) <= PACE.concurrency


@pytest.mark.parametrize(
  ("plan", "budget_usd"), [(None, 0.05), (BatchSettings(questions=10, poll_s=0.0), 0.025)]
)
def test_a_budget_holds_and_a_higher_one_goes_on(
  start, serve, answers, questions, plan, budget_usd
):
  server = serve(answers)
  run = start(questions, server, budget_usd=budget_usd, plan=plan)
  assert run.stop_reason.startswith(f"budget_usd={budget_usd} leaves no room")
  assert 0 < run.ledger.spent_usd <= budget_usd
  max_at_once = int(budget_usd / PRICES.usd(MOST, batch=True))
  assert all(len(keys) <= max_at_once for keys in run.journal.jobs.values())
  left = sum(history.open is not None for history in histories(run))
  assert 0 < left < SMALL
  run = start(questions, server, plan=plan)
  assert len(settled(run)) == SMALL and run.ledger.spent_usd > budget_usd
  assert set(server.stats().answers.values()) == {1}


def test_what_the_server_asks_to_wait_for_is_waited_for(start, serve, answers, folder):
  """Each question is told once to come back after a third of a second; by itself it would after a hundredth."""
  server = serve(answers, faults=Faults(rate_limited=1.0, retry_after_s=0.3, clears_after=1))
  source = JsonlSource(folder / "train.jsonl", folder / "images")
  one = Questions(source, formats.GEMINI, Attempts(1, 0), identity={}, seed=0, limit=1)
  begun = time.monotonic()
  assert len(settled(start(one, server))) == 1
  assert time.monotonic() - begun >= 0.3


def test_after_a_stop_nothing_leaves(start, serve, answers, questions):
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
  assert "in a row came to nothing, the last one with: 503" in run.stop_reason
  assert 20 <= run.unanswered <= 28 and not run.journal.answers and not run.journal.interrupted


def test_a_wrong_key_ends_the_run_at_once_and_is_not_told(start, serve, answers, questions):
  server = serve(answers)
  with pytest.raises(UsageError, match="API key not valid") as caught:
    start(questions, server, key="SECRET-7f3a")
  assert "SECRET-7f3a" not in str(caught.value) and not server.stats().answers
  run = start(questions, server)
  assert len(settled(run)) == SMALL
  assert len(run.journal.interrupted) < PACE.concurrency, "what the refusal itself cut off"


def test_another_version_ends_the_run_unless_it_is_asked_for(start, serve, answers, questions):
  server = serve(answers, faults=Faults(other_version=0.3))
  run = start(questions, server)
  assert "local-00" in run.stop_reason and "allow_mixed_versions" in run.stop_reason
  assert len(run.journal.answers) < SMALL
  chosen = start(questions, server, model_version="gemini-2.5-local-001")
  kept = {o.model_version for h in histories(chosen) for o in h.outcomes if o.accepted}
  refused = {
    o.rejections[0].check
    for h in histories(chosen)
    for o in h.outcomes
    if o.model_version == "gemini-2.5-local-002"
  }
  assert kept == {"gemini-2.5-local-001"} and refused == {"version"}
  mixed = start(questions, server, mixed=True)
  assert len({o.model_version for h in histories(mixed) for o in h.outcomes if o.accepted}) == 2


def test_a_question_that_is_refused_is_settled(start, serve, questions):
  def answer(image, system, text, seed):
    raise ValueError("too large a picture")

  server = serve(answer)
  run = start(questions, server)
  assert "in a row came to nothing" in run.stop_reason and "too large a picture" in run.stop_reason
  outcome = next(h.outcomes[0] for h in histories(run) if h.outcomes)
  assert [r.check for r in outcome.rejections] == ["refused"] and outcome.text is None
  assert not run.ledger.spent_usd and not run.ledger.unconfirmed_usd


PLAN = BatchSettings(questions=25, poll_s=0.0)


def test_batches_find_what_single_questions_find(start, serve, answers, questions, tmp_path):
  singly = settled(start(questions, serve(answers)))
  (tmp_path / "journal").rename(tmp_path / "singly")
  trouble = Faults(row_failed=0.1, row_missing=0.1, rows_shuffled=True, unavailable=0.2)
  server = serve(answers, faults=trouble, batch_polls=2)
  run = start(questions, server, plan=PLAN)
  assert settled(run) == singly
  assert set(server.stats().jobs.values()) == {1} and len(server.stats().jobs) >= 5
  assert run.journal.lost and set(run.journal.jobs) == run.journal.ended
  assert all(each.batch for each in run.journal.billed)


def test_a_failed_batch_is_made_anew_under_another_name(start, serve, answers, questions, tmp_path):
  whole = BatchSettings(questions=SMALL, poll_s=0.0)
  name = next(iter(start(questions, serve(answers), plan=whole).journal.jobs))
  (tmp_path / "journal").rename(tmp_path / "undisturbed")
  trouble = Faults(job_failed=0.3, job_expired=0.3)
  fails_once = next(
    seed
    for seed in range(100)
    if trouble.draw(JOB, seed, name) and not trouble.draw(JOB, seed, name[:-1] + "1")
  )
  server = serve(answers, faults=trouble, seed=fails_once)
  run = start(questions, server, plan=whole)
  assert list(run.journal.jobs)[:2] == [name, name[:-1] + "1"] and len(settled(run)) == SMALL
  assert len(run.journal.lost) >= SMALL, "it may have been billed"


@pytest.mark.parametrize("moment", ["before it is created", "while it runs", "among its results"])
def test_a_batch_that_was_cut_off_is_found_again_and_never_made_twice(
  start, serve, answers, questions, monkeypatch, moment
):
  server = serve(answers)
  target = {
    "before it is created": (GeminiBatches, "create"),
    "while it runs": (GeminiBatches, "poll"),
    "among its results": (Journal, "add_reply"),
  }[moment]
  original, calls = getattr(*target), itertools.count(1)

  def cut_off(*args, **kwargs):
    if next(calls) == 5 if moment == "among its results" else True:
      raise Cut
    return original(*args, **kwargs)

  with monkeypatch.context() as patch, pytest.raises(Cut):
    patch.setattr(*target, cut_off)
    start(questions, server, plan=PLAN)
  run = start(questions, server, plan=PLAN)
  assert len(settled(run)) == SMALL
  assert set(server.stats().jobs.values()) == {1} and set(server.stats().answers.values()) == {1}
  assert set(run.journal.jobs) == set(server.stats().jobs) == run.journal.ended
  assert len(run.journal.billed) == len(run.journal.answers), "each answer is paid for once"


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
