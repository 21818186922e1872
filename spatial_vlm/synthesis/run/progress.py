"""Progress of each record: its checked answers and the next attempt, computed from stored answers alone.

A run uses it to find the missing questions and to read its results from the journal; `--offline` only does the latter.
"""

import dataclasses
from typing import NamedTuple

from spatial_vlm.synthesis.formats import ResponseFormat
from spatial_vlm.synthesis.run.journal import Journal
from spatial_vlm.synthesis.run.questions import Questions
from spatial_vlm.synthesis.teacher import Answer, Refusal, Usage
from spatial_vlm.synthesis.verify.check_settings import CheckSettings
from spatial_vlm.synthesis.verify.checks import CheckedAnswer, Rejection, examine


@dataclasses.dataclass(frozen=True)
class Verifier:
  """Checks stored answers."""

  response_format: ResponseFormat
  settings: CheckSettings
  model_version: str
  """Rejects the answers of other model versions; empty: accepts all versions."""

  def check(self, answer: Answer, questions: Questions, index: int, attempt: int) -> CheckedAnswer:
    """Returns the checked answer to one attempt at the record `index`."""
    record, hinted = questions.record(index), questions.is_hinted(attempt)
    if isinstance(answer, Refusal):
      rejections = (Rejection("refused", answer.reason),)
      return CheckedAnswer(record, attempt, hinted, None, None, rejections, "", Usage(0, 0, 0, 0))
    draft, rejections = examine(answer, self.response_format, record, self.settings)
    if self.model_version and answer.model_version != self.model_version:
      detail = f"answered by {answer.model_version}, but model_version is {self.model_version}"
      rejections = (Rejection("version", detail), *rejections)
    return CheckedAnswer(
      record,
      attempt,
      hinted,
      text=answer.text,
      draft=draft,
      rejections=rejections,
      model_version=answer.model_version,
      usage=answer.usage,
    )


class RecordProgress(NamedTuple):
  """Checked answers of one record."""

  index: int
  """Index of the record in its file."""
  answers: list[CheckedAnswer]
  """One per attempt, up to the first accepted one."""
  next_attempt: int | None
  """The next attempt to send; None if the record is settled."""

  @property
  def accepted(self) -> bool:
    """True if the last answer is accepted."""
    return bool(self.answers) and self.answers[-1].accepted


def record_progress(
  questions: Questions, index: int, journal: Journal, verifier: Verifier
) -> RecordProgress:
  """Checks the stored answers about one record."""
  answers: list[CheckedAnswer] = []
  for attempt in range(len(questions.attempts)):
    answer = journal.answers.get(questions.key(index, attempt))
    if answer is None:
      return RecordProgress(index, answers, attempt)
    answers.append(verifier.check(answer, questions, index, attempt))
    if answers[-1].accepted:
      break
  return RecordProgress(index, answers, None)
