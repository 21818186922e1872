"""Progress of records, computed from the journal alone."""

import pytest
from synthesis_runs import CHECK_SETTINGS

from spatial_vlm.synthesis import formats
from spatial_vlm.synthesis.local.scene_answers import SceneAnswers
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.progress import Verifier, record_progress
from spatial_vlm.synthesis.teacher import Reply, Usage


@pytest.fixture
def journal(tmp_path):
  with Journal(tmp_path) as journal:
    yield journal


def verifier(model_version=""):
  return Verifier(formats.GEMINI, CHECK_SETTINGS, model_version)


def exact_reply(folder, question, version="m-1"):
  text = SceneAnswers(folder, "train", 0.0)(
    question.image, question.system, question.text, question.seed
  )
  return Reply(text, "STOP", version, Usage(9, 0, 5, 0), {})


def test_a_refusal_is_rejected_and_the_next_attempt_follows(questions, journal, folder):
  assert record_progress(questions, 0, journal, verifier()) == (0, [], 0)
  journal.add_refusal(questions.key(0, 0), "too large")
  progress = record_progress(questions, 0, journal, verifier())
  assert progress.next_attempt == 1 and not progress.accepted
  assert progress.answers[0].rejections == (("refused", "too large"),)
  journal.add_reply(questions.key(0, 1), exact_reply(folder, questions.question(0, 1)))
  progress = record_progress(questions, 0, journal, verifier())
  assert progress.next_attempt is None and progress.accepted and progress.answers[1].hinted


def test_an_accepted_answer_settles_the_record(questions, journal, folder):
  journal.add_reply(questions.key(3, 0), exact_reply(folder, questions.question(3, 0)))
  progress = record_progress(questions, 3, journal, verifier())
  assert progress.next_attempt is None and len(progress.answers) == 1 and progress.accepted


def test_answers_of_other_model_versions_are_rejected(questions, journal, folder):
  journal.add_reply(questions.key(3, 0), exact_reply(folder, questions.question(3, 0)))
  [answer] = record_progress(questions, 3, journal, verifier("m-2")).answers
  assert answer.rejections == (("version", "answered by m-1, but model_version is m-2"),)
