"""Asks a teacher about text alone, over the journal, the budget and the rate limits of a synthesis run."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from spatial_vlm.config import UsageError
from spatial_vlm.progress import progress_bar
from spatial_vlm.reuse.extraction.extractor import TextQuestion
from spatial_vlm.synthesis.formats import without_thoughts
from spatial_vlm.synthesis.hashing import hash_seed
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.ledger import Ledger
from spatial_vlm.synthesis.run.limiter import RateLimiter, RequestLimits
from spatial_vlm.synthesis.run.questions import question_key
from spatial_vlm.synthesis.run.requests import RequestRun, send_with_retries, work_on
from spatial_vlm.synthesis.teacher import Answer, Question, Reply, Teacher

_TURN_TOKENS = 64
"""Most tokens that mark the turns of a prompt."""


@dataclasses.dataclass
class TextRun(RequestRun):
  """State of one start that asks about text."""

  journal: Journal
  ledger: Ledger
  limits: RequestLimits
  refused_in_a_row: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class TextAsker:
  """Answers text questions (`reuse.extractor.Ask`): those that the journal knows from there, the others by the teacher.

  The answer to a question that could have more tokens than the budget reserves is None; it is not sent.
  Raises UsageError if the run stops with questions unanswered; the same command continues with them.
  """

  run: TextRun
  teacher: Teacher
  loop: asyncio.Runner
  """Runs the event loop in which the teacher was opened."""
  identity: Mapping[str, Any]
  """Model and sampling settings; part of every key."""
  seed: int
  takes_instructions: bool
  """Whether the teacher takes a system turn and a schema; else both are left to the text."""
  max_prompt_tokens: int
  """Prompt tokens that the ledger reserves for a question."""
  refused: set[str] = dataclasses.field(default_factory=set)
  """Filled by calls: keys of the questions that are not sent, because they could have more tokens."""

  def __call__(self, questions: Sequence[TextQuestion]) -> list[str | None]:
    sent = [self._question(question) for question in questions]
    keys = [question_key(question, "", self.identity) for question in sent]
    answers = self.run.journal.answers
    missing = {key: q for key, q in zip(keys, sent, strict=True) if key not in answers}
    long = {
      key for key, question in missing.items() if _most_tokens(question) > self.max_prompt_tokens
    }
    self.refused.update(long)
    missing = {key: question for key, question in missing.items() if key not in long}
    if missing:
      self.loop.run(_send(self.run, missing, self.teacher))
    if unanswered := sum(key not in answers for key in missing):
      raise UsageError(
        f"{unanswered:,} of {len(keys):,} questions to the teacher are not answered "
        f"({self.run.stop_reason or 'no answer came'}); the same command continues with them"
      )
    replies = [answers.get(key) for key in keys]
    return [_text(reply) for reply in replies]

  def _question(self, asked: TextQuestion) -> Question:
    seed = hash_seed(self.seed, asked.system, asked.text, asked.attempt)
    if self.takes_instructions:
      return Question(asked.system, asked.text, b"", "", seed, asked.schema)
    return Question("", f"{asked.system}\n\n{asked.text}", b"", "", seed, None)


def _text(answer: Answer | None) -> str | None:
  """Returns the text of a complete answer."""
  if not isinstance(answer, Reply) or answer.finish != "STOP" or answer.text is None:
    return None
  return without_thoughts(answer.text)


def _most_tokens(question: Question) -> int:
  """Returns a bound on the prompt tokens of a question: its UTF-8 bytes, since each token stands for at least one."""
  schema = json.dumps(question.schema) if question.schema else ""
  return _TURN_TOKENS + len(f"{question.system}{question.text}{schema}".encode())


async def _send(run: TextRun, questions: Mapping[str, Question], teacher: Teacher) -> None:
  limiter = RateLimiter(run.limits)
  with progress_bar("questions to the teacher", len(questions)) as bar:

    async def settle(key: str) -> None:
      result = await send_with_retries(run, key, questions[key], teacher, limiter)
      if result is not None:
        run.count(key, result)
        bar.set_postfix(usd=f"{run.ledger.spent_usd:.2f}", refresh=False)
        bar.update()

    await work_on(run, questions, settle)
