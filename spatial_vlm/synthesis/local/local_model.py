"""The model of the local server: an answer function with faults, and counts of what was served and billed."""

import collections
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from spatial_vlm.synthesis.errors import SynthesisError
from spatial_vlm.synthesis.local.faults import ANSWER, Faults

AnswerFunction = Callable[[bytes, str, str, int], str]
"""(image, system instruction, text, seed) → answer."""

IMAGE_TOKENS = 258
"""Billed tokens of an image."""


class ReceivedQuestion(NamedTuple):
  """A question, parsed from a request of any API."""

  image: bytes
  system: str
  text: str
  seed: int


class ModelAnswer(NamedTuple):
  """An answer with its billed tokens."""

  text: str
  """Empty if the answer was blocked."""
  finish: str
  """STOP, MAX_TOKENS, SAFETY, or PROHIBITED_CONTENT (the prompt was blocked)."""
  version: str
  prompt: int
  cached: int
  answer: int
  thoughts: int


class ApiError(SynthesisError):
  """The server answers with an error status."""

  def __init__(self, code: int, status: str, message: str, reason: str | None = None):
    super().__init__(message)
    self.code = code
    self.status = status
    """Google's name of the status, such as INVALID_ARGUMENT."""
    self.reason = reason
    """Reason in google.rpc.ErrorInfo."""


@dataclasses.dataclass
class Stats:
  """Counts of what a server has served; questions are identified by `question_hash`."""

  requests: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Question → times it arrived, alone or as the row of a batch."""
  answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Question → times it was answered and billed, whether or not the answer arrived."""
  jobs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """Display name → batches created."""
  in_flight: int = 0
  """Current requests; batches do not count."""
  max_in_flight: int = 0
  """Most requests at once."""
  tokens: int = 0
  """Billed tokens of every kind."""


class LocalModel:
  """Answers questions and counts them; thread-safe."""

  def __init__(self, answer: AnswerFunction, name: str, faults: Faults, seed: int):
    self.name, self.faults, self.seed = name, faults, seed
    self._answer = answer
    self._stats = Stats()
    self._lock = threading.Lock()

  def answer(self, question: ReceivedQuestion) -> ModelAnswer:
    """Returns the answer, or its faulty version; a token is a word, and an image has a fixed number."""
    identity = question_hash(*question)
    with self._lock:
      self._stats.requests[identity] += 1
    fault = self.faults.draw(ANSWER, self.seed, identity)
    text, finish = self._text(question, fault)
    cached, words = len(question.system.split()), len(question.text.split())
    answer = ModelAnswer(
      text=text,
      finish=finish,
      version=f"{self.name}-{'002' if fault == 'other_version' else '001'}",
      prompt=cached + words + (IMAGE_TOKENS if question.image else 0),
      cached=cached,
      answer=len(text.split()),
      thoughts=0 if fault == "blocked_prompt" else words,
    )
    with self._lock:
      self._stats.answers[identity] += 1
      self._stats.tokens += answer.prompt + answer.answer + answer.thoughts
    return answer

  def check_name(self, name: str) -> None:
    """Raises ApiError unless `name` is this model."""
    if name != self.name:
      raise ApiError(404, "NOT_FOUND", f"models/{name} is not found")

  def count_job(self, display_name: str) -> None:
    """Counts a batch."""
    with self._lock:
      self._stats.jobs[display_name] += 1

  @contextlib.contextmanager
  def count_in_flight(self) -> Iterator[None]:
    """Counts a request as in flight for the body of the `with`."""
    with self._lock:
      self._stats.in_flight += 1
      self._stats.max_in_flight = max(self._stats.max_in_flight, self._stats.in_flight)
    try:
      yield
    finally:
      with self._lock:
        self._stats.in_flight -= 1

  def stats(self) -> Stats:
    """Returns a copy of the counts."""
    with self._lock:
      counters = {
        name: getattr(self._stats, name).copy() for name in ("requests", "answers", "jobs")
      }
      return dataclasses.replace(self._stats, **counters)

  def _text(self, question: ReceivedQuestion, fault: str | None) -> tuple[str, str]:
    """Returns text and finish reason."""
    match fault:
      case "safety":
        return "", "SAFETY"
      case "blocked_prompt":
        return "", "PROHIBITED_CONTENT"
    text = self._answer(*question)
    match fault:
      case "fenced":
        return f"```json\n{text}\n```", "STOP"
      case "max_tokens":
        return text[: len(text) // 2], "MAX_TOKENS"
    return text, "STOP"


def question_hash(image: bytes, system: str, text: str, seed: int) -> str:
  """Returns the identity of a question in `Stats`."""
  parts = (hashlib.sha256(image).hexdigest(), system, text, str(seed))
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()
