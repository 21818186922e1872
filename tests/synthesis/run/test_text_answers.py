"""Questions about text: journaled, within the budget, resumed, through Gemini's and OpenAI's clients."""

import asyncio
import collections
import dataclasses

import pytest
from synthesis_runs import MAX_USAGE, PRICES, REQUEST_LIMITS

from spatial_vlm.config import UsageError
from spatial_vlm.reuse.extraction.extractor import TextQuestion
from spatial_vlm.synthesis.local.faults import TRANSIENT, Faults
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.text_answers import TextAsker, TextRun
from spatial_vlm.synthesis.teachers.openai_chat import OpenAIChatSettings, OpenAIChatTeacher

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
QUESTIONS = [TextQuestion("You reflect.", f"question {i}", (None, SCHEMA)[i % 2]) for i in range(6)]


def answer(image, system, text, seed):
  assert image == b""
  return f"{system}|{text}|{seed}"


def openai(server):
  settings = OpenAIChatSettings(server.model.name, f"{server.url}/v1", 20.0, 0.7, 2048)
  return OpenAIChatTeacher(settings, server.key)


@pytest.fixture
def ask(tmp_path):
  """Asks one teacher, as `ask(teacher, questions)`, with the journal of the test's folder."""

  def begin(
    teacher,
    questions,
    budget_usd=None,
    identity="m",
    limits=REQUEST_LIMITS,
    plain=False,
    longest=2000,
  ):
    with Journal(tmp_path / "journal") as journal, asyncio.Runner() as loop:
      run = TextRun(journal, Ledger(journal, PRICES, MAX_USAGE, budget_usd), limits)

      async def close():
        await teacher.__aexit__(None, None, None)

      try:
        asker = TextAsker(run, teacher, loop, {"model": identity}, 0, not plain, longest)
        begin.asker = asker
        return asker(questions)
      finally:
        loop.run(close())

  return begin


@pytest.mark.parametrize("kind", ["gemini", "openai"])
def test_answers_come_in_order_and_are_never_paid_for_twice(kind, serve, gemini, ask):
  server = serve(answer)
  open_teacher = gemini if kind == "gemini" else openai
  found = ask(open_teacher(server), QUESTIONS)
  assert [text.rpartition("|")[0] for text in found] == [
    f"You reflect.|{q.text}" for q in QUESTIONS
  ]
  assert not {name for name in (b"inlineData", b"image_url") if name in server.last_body}
  more = [*reversed(QUESTIONS), QUESTIONS[0]._replace(attempt=1)]
  again = ask(open_teacher(server), more)
  assert again[:-1] == found[::-1]
  assert again[-1] != found[0]  # a further attempt has a seed of its own
  assert collections.Counter(server.stats().requests.values()) == {1: len(QUESTIONS) + 1}


def test_questions_that_could_exceed_the_reserved_tokens_are_not_sent(serve, gemini, ask):
  """UTF-8 bytes of text, instructions and schema are counted: a token has at least one."""
  server = serve(answer)
  long = TextQuestion("You reflect.", "犬" * 100)
  found = ask(gemini(server), [QUESTIONS[0], long, long], longest=300)
  assert found[0] and found[1:] == [None, None]
  assert sum(server.stats().answers.values()) == 1 and len(ask.asker.refused) == 1
  assert ask(gemini(server), [QUESTIONS[1]._replace(schema={"a": "b" * 300})], longest=300) == [
    None
  ]


def test_another_model_answers_anew(serve, gemini, ask):
  server = serve(answer)
  ask(gemini(server), QUESTIONS[:1])
  ask(gemini(server), QUESTIONS[:1], identity="other")
  assert sum(server.stats().answers.values()) == 2


def test_a_teacher_without_instructions_reads_them_in_the_text(serve, gemini, ask):
  (text,) = ask(gemini(serve(answer)), QUESTIONS[1:2], plain=True)
  assert text.startswith("|You reflect.\n\nquestion 1|")


def test_faults_are_retried_and_incomplete_answers_are_none(serve, gemini, ask):
  server = serve(answer, faults=Faults(**dict.fromkeys(TRANSIENT, 0.1), retry_after_s=0.01))
  assert None not in ask(gemini(server, timeout_s=2.0), QUESTIONS)
  for attempt, fault in enumerate(("safety", "max_tokens"), start=7):
    incomplete = serve(answer, faults=Faults(**{fault: 1.0}))
    assert ask(gemini(incomplete), [QUESTIONS[0]._replace(attempt=attempt)]) == [None]


def test_the_budget_stops_and_the_next_start_goes_on(serve, gemini, ask):
  server = serve(answer)
  limits = dataclasses.replace(REQUEST_LIMITS, concurrency=1)
  worst = PRICES.usd(MAX_USAGE, batch=False)
  with pytest.raises(UsageError, match=r"of 6 questions to the teacher are not answered \(budget"):
    ask(gemini(server), QUESTIONS, budget_usd=worst, limits=limits)
  before = sum(server.stats().answers.values())
  assert 0 < before < 6
  assert None not in ask(gemini(server), QUESTIONS)
  assert sum(server.stats().answers.values()) == 6
