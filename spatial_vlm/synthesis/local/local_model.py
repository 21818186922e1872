"""The model behind the local server: any function that answers, its faults, and what it has served and billed."""

import collections
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from spatial_vlm.synthesis.local.faults import ANSWER, Faults

Answer = Callable[[bytes, str, str, int], str]
"""(image, system instruction, text, seed) -> what the model writes."""

PICTURE_TOKENS = 258


class Asked(NamedTuple):
  """A question, whichever way it came."""

  image: bytes
  system: str
  text: str
  seed: int


class Generation(NamedTuple):
  """An answer, with its tokens as they are billed."""

  text: str
  """Empty where nothing was written."""
  finish: str
  """STOP, MAX_TOKENS, SAFETY, or PROHIBITED_CONTENT where the question was blocked."""
  version: str
  prompt: int
  cached: int
  answer: int
  thoughts: int


class ApiError(Exception):
  """What a service answers with instead of 200."""

  def __init__(self, code: int, status: str, message: str, reason: str | None = None):
    super().__init__(message)
    self.code = code
    self.status = status
    """In Google's words, such as INVALID_ARGUMENT."""
    self.reason = reason
    """Of google.rpc.ErrorInfo."""


@dataclasses.dataclass
class Stats:
  """What a server has done so far; `hash` is `question_hash`."""

  requests: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """By hash: how often it was asked, by itself or as the row of a batch."""
  answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """By hash: how often it was answered, and billed, whether or not the answer arrived."""
  jobs: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  """By display name: batches created."""
  in_flight: int = 0
  in_flight_most: int = 0
  """Questions at once; batches do not count."""
  tokens: int = 0
  """Billed, of every kind."""


class LocalModel:
  """Answers from several threads at once, and counts."""

  def __init__(self, answer: Answer, name: str, faults: Faults, seed: int):
    self.name, self.faults, self.seed = name, faults, seed
    self._answer = answer
    self._stats = Stats()
    self._lock = threading.Lock()

  def write(self, asked: Asked) -> Generation:
    """The answer, or what a fault makes of it; tokens are words, and a fixed number for the picture."""
    identity = question_hash(*asked)
    with self._lock:
      self._stats.requests[identity] += 1
    fault = self.faults.draw(ANSWER, self.seed, identity)
    text, finish = self._text(asked, fault)
    cached, words = len(asked.system.split()), len(asked.text.split())
    written = Generation(
      text=text,
      finish=finish,
      version=f"{self.name}-{'002' if fault == 'other_version' else '001'}",
      prompt=cached + words + PICTURE_TOKENS,
      cached=cached,
      answer=len(text.split()),
      thoughts=0 if fault == "blocked_prompt" else words,
    )
    with self._lock:
      self._stats.answers[identity] += 1
      self._stats.tokens += written.prompt + written.answer + written.thoughts
    return written

  def check_name(self, name: str) -> None:
    """Raises ApiError for a model that is not this one."""
    if name != self.name:
      raise ApiError(404, "NOT_FOUND", f"models/{name} is not found")

  def count_job(self, display_name: str) -> None:
    """One more batch of this name."""
    with self._lock:
      self._stats.jobs[display_name] += 1

  @contextlib.contextmanager
  def flight(self) -> Iterator[None]:
    """Around a question, from its arrival until its answer is sent."""
    with self._lock:
      self._stats.in_flight += 1
      self._stats.in_flight_most = max(self._stats.in_flight_most, self._stats.in_flight)
    try:
      yield
    finally:
      with self._lock:
        self._stats.in_flight -= 1

  def stats(self) -> Stats:
    """What was served so far; does not change any more."""
    with self._lock:
      counters = {
        name: getattr(self._stats, name).copy() for name in ("requests", "answers", "jobs")
      }
      return dataclasses.replace(self._stats, **counters)

  def _text(self, asked: Asked, fault: str | None) -> tuple[str, str]:
    """Text and why it ends."""
    match fault:
      case "safety":
        return "", "SAFETY"
      case "blocked_prompt":
        return "", "PROHIBITED_CONTENT"
    text = self._answer(*asked)
    match fault:
      case "fenced":
        return f"```json\n{text}\n```", "STOP"
      case "max_tokens":
        return text[: len(text) // 2], "MAX_TOKENS"
    return text, "STOP"


def question_hash(image: bytes, system: str, text: str, seed: int) -> str:
  """What `Stats` knows a question by."""
  parts = (hashlib.sha256(image).hexdigest(), system, text, str(seed))
  return hashlib.sha256("\0".join(parts).encode()).hexdigest()
