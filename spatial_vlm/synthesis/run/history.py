"""What has become of a record so far: a pure function of its questions and of the answers that are stored.

A run asks what is missing, and afterwards reads its results off the journal by the same function; so does everyone who
checks stored answers once more.
"""

import dataclasses
from typing import NamedTuple

from spatial_vlm.synthesis.draft import Form
from spatial_vlm.synthesis.run.journal import Answer, Journal
from spatial_vlm.synthesis.run.questions import Questions
from spatial_vlm.synthesis.teacher import Refused, Usage
from spatial_vlm.synthesis.verify.checks import Limits, Outcome, Rejection, examine


@dataclasses.dataclass(frozen=True)
class Judge:
  """Turns answers into outcomes."""

  form: Form
  limits: Limits
  model_version: str
  """Answers of other versions of the model are not accepted; empty: those of any."""

  def __call__(self, answer: Answer, questions: Questions, number: int, attempt: int) -> Outcome:
    about = {
      "record": questions.record(number),
      "attempt": attempt,
      "hinted": questions.is_hinted(attempt),
    }
    if isinstance(answer, Refused):
      nothing = {"text": None, "draft": None, "model_version": "", "usage": Usage(0, 0, 0, 0)}
      return Outcome(**about, **nothing, rejections=(Rejection("refused", str(answer)),))
    draft, rejections = examine(answer, self.form, about["record"], self.limits)
    if self.model_version and answer.model_version != self.model_version:
      other = f"{answer.model_version} answered, asked for is {self.model_version}"
      rejections = (Rejection("version", other), *rejections)
    return Outcome(
      **about,
      text=answer.text,
      draft=draft,
      rejections=rejections,
      model_version=answer.model_version,
      usage=answer.usage,
    )


class History(NamedTuple):
  """Of one record."""

  number: int
  outcomes: list[Outcome]
  """Of its attempts, up to the first that is accepted."""
  open: int | None
  """The attempt that has to be asked next; None when the record is settled."""

  @property
  def accepted(self) -> bool:
    return bool(self.outcomes) and self.outcomes[-1].accepted


def history(questions: Questions, number: int, journal: Journal, judge: Judge) -> History:
  """Reads the stored answers to one record's questions."""
  outcomes: list[Outcome] = []
  for attempt in range(len(questions.attempts)):
    answer = journal.answers.get(questions.key(number, attempt))
    if answer is None:
      return History(number, outcomes, attempt)
    outcomes.append(judge(answer, questions, number, attempt))
    if outcomes[-1].accepted:
      break
  return History(number, outcomes, None)
