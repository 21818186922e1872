"""Runs in batches: the same results as single questions, and no batch created twice."""

import itertools

import pytest
from synthesis_runs import SMALL, Cut, settled

from spatial_vlm.synthesis.local.faults import JOB, Faults
from spatial_vlm.synthesis.run.batch_requests import BatchSettings
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.teachers.gemini_batch import GeminiBatches

PLAN = BatchSettings(questions=25, poll_s=0.0)


def test_batches_give_the_results_of_single_questions(start, serve, answers, questions, tmp_path):
  singly = settled(start(questions, serve(answers)))
  (tmp_path / "journal").rename(tmp_path / "singly")
  trouble = Faults(row_failed=0.1, row_missing=0.1, rows_shuffled=True, unavailable=0.2)
  server = serve(answers, faults=trouble, batch_polls=2)
  run = start(questions, server, plan=PLAN)
  assert settled(run) == singly
  assert set(server.stats().jobs.values()) == {1} and len(server.stats().jobs) >= 5
  assert run.journal.lost and set(run.journal.jobs) == run.journal.ended
  assert all(each.batch for each in run.journal.billed)


def test_a_failed_batch_is_created_again_under_another_name(
  start, serve, answers, questions, tmp_path
):
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
def test_an_interrupted_batch_is_found_and_not_created_twice(
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
