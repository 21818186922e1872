"""The interface between a synthesis run and a teacher: questions, replies and token usage."""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


@dataclasses.dataclass(frozen=True)
class Question:
  """One request; no field depends on which teacher answers it."""

  system: str
  text: str
  image: bytes
  """The encoded image file; empty for a question about text alone."""
  mime_type: str
  """MIME type of the image, such as `image/jpeg`."""
  seed: int
  """Sampling seed in [0, 2³¹); every attempt at a record has its own."""
  schema: dict[str, Any] | None
  """JSON schema of the answer; None for plain text."""


class Usage(NamedTuple):
  """Billed tokens of one reply."""

  prompt: int
  """All prompt tokens, including `cached`."""
  cached: int
  answer: int
  """Output tokens, excluding `thoughts`."""
  thoughts: int


def sum_usage(usages: Iterable[Usage]) -> Usage:
  """Sums each kind of token.

  >>> sum_usage([Usage(9, 2, 3, 4), Usage(1, 0, 1, 0)])
  Usage(prompt=10, cached=2, answer=4, thoughts=4)
  """
  return Usage(*map(sum, zip((0, 0, 0, 0), *usages, strict=True)))


@dataclasses.dataclass(frozen=True)
class Reply:
  """A billed reply, whether or not its text is usable."""

  text: str | None
  """None if the reply was blocked or ended before the first word."""
  finish: str
  """Finish reason in capitals: STOP for a complete reply, else the server's reason (MAX_TOKENS, SAFETY, …)."""
  model_version: str
  """Version of the model that answered, as the server reports it."""
  usage: Usage
  raw: dict[str, Any]
  """The whole response as JSON."""


@dataclasses.dataclass(frozen=True)
class Refusal:
  """A stored refusal: the teacher will never answer this question."""

  reason: str

  def __str__(self) -> str:
    return self.reason


Answer = Reply | Refusal
"""A final answer; the question is not sent again."""


class Teacher(Protocol):
  """Answers single questions; many calls may run at once."""

  async def ask(self, question: Question) -> Reply:
    """Sends the question once, without retries.

    Raises:
      BusyError: the question was neither answered nor billed.
      LostError: no complete reply arrived; it may have been billed.
      RefusedError: the teacher will never answer this question.
      UsageError: every other question would fail too, as with a wrong key or an unknown model.
    """
    ...
