"""Who writes the chains of thought that a policy is first taught by: what a teacher is asked, and what it answers."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


@dataclasses.dataclass(frozen=True)
class Question:
  """One request for a chain: nothing in it depends on who answers."""

  system: str
  text: str
  image: bytes
  """An encoded picture, as it is sent."""
  mime_type: str
  """Of the picture, such as `image/jpeg`."""
  seed: int
  """Of the sampling: every attempt at one record has its own, in [0, 2³¹)."""
  schema: dict[str, Any] | None
  """JSON schema that the answer has to keep; None where it is plain text."""


class Usage(NamedTuple):
  """Tokens of one reply, as they are billed."""

  prompt: int
  """With `cached`."""
  cached: int
  answer: int
  """Without `thoughts`."""
  thoughts: int


def total(usages: Iterable[Usage]) -> Usage:
  """Sum by kind of token."""
  return Usage(*map(sum, zip((0, 0, 0, 0), *usages, strict=True)))


@dataclasses.dataclass(frozen=True)
class Reply:
  """What came back and was paid for, whatever it is worth."""

  text: str | None
  """None where nothing was written: blocked, or cut off while thinking."""
  finish: str
  """Why it ended, in capitals: STOP when the teacher had finished, else the server's reason (MAX_TOKENS, SAFETY, …)."""
  model_version: str
  """The model that really answered, as the server says."""
  usage: Usage
  raw: dict[str, Any]
  """Everything that was received, as JSON."""


class Teacher(Protocol):
  """Answers questions one at a time, many of them at once."""

  async def ask(self, question: Question) -> Reply:
    """Sends the question once, without any retry; raises Busy, Lost, Refused or `config.UsageError`.

    The latter stands for what no other question will change: a wrong key, an unknown model.
    """
    ...


class Busy(Exception):
  """Not answered and not billed: too many requests, or trouble on the server's side. To be tried again."""

  def __init__(self, message: str, retry_after_s: float | None = None):
    super().__init__(message)
    self.retry_after_s = retry_after_s
    """What the server asks to wait for; None where it does not say."""


class Lost(Exception):
  """Sent, but no whole reply came back: it may have been written, and billed. To be tried again."""


class Refused(Exception):
  """The server will not answer this question, now or later, and says why."""
