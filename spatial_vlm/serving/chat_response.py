"""Answers as OpenAI's objects: a completion, or the chunks of one."""

import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from spatial_vlm import answers
from spatial_vlm.serving.chat_request import ChatRequest
from spatial_vlm.serving.prompts import Prompt
from spatial_vlm.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
  """A generated token."""

  piece: bytes
  logp: float
  likeliest: Sequence["TokenLogprob"] = ()
  """The likeliest tokens at its place, if they were asked for."""

  @property
  def content(self) -> dict[str, Any]:
    """OpenAI's object of it."""
    return self._entry | {"top_logprobs": [token._entry for token in self.likeliest]}

  @property
  def _entry(self) -> dict[str, Any]:
    return {
      "token": self.piece.decode(errors="replace"),
      "logprob": self.logp,
      "bytes": list(self.piece),
    }


@dataclasses.dataclass(frozen=True)
class Piece:
  """What one step adds to one answer."""

  sample: int
  text: str
  tokens: Sequence[TokenLogprob]
  """Without those of no text, e.g. the end of the turn."""
  count: int
  """Number of generated tokens, all included."""
  finished: str | None
  """OpenAI's finish_reason: "stop" or "length"; None while the answer goes on."""


@dataclasses.dataclass
class Sample:
  """An answer so far."""

  text: str = ""
  tokens: list[TokenLogprob] = dataclasses.field(default_factory=list)
  count: int = 0
  finished: str | None = None

  def add(self, piece: Piece) -> None:
    """Appends a piece."""
    self.text += piece.text
    self.tokens += piece.tokens
    self.count += piece.count
    self.finished = piece.finished


class Completion:
  """One request and its answers; makes the objects that are sent.

  Args:
    model: served name of the model.
    task: parses the verdict.
    request: the request.
    prompt: its prompt.
  """

  def __init__(self, model: str, task: Task, request: ChatRequest, prompt: Prompt):
    self.task, self.request, self.prompt = task, request, prompt
    self.samples = [Sample() for _ in range(request.samples)]
    self._head = {
      "id": f"chatcmpl-{secrets.token_hex(12)}",
      "created": int(time.time()),
      "model": model,
    }

  @property
  def saved_tokens(self) -> int:
    """Tokens that the recalled behavior saves by its handbook; 0 without one."""
    return round(self.prompt.behavior.saved_tokens) if self.prompt.behavior else 0

  @property
  def usage(self) -> dict[str, Any]:
    """OpenAI's usage; `saved_tokens` stands in it where the project's own words were asked for."""
    completion = sum(sample.count for sample in self.samples)
    usage: dict[str, Any] = {
      "prompt_tokens": self.prompt.tokens,
      "completion_tokens": completion,
      "total_tokens": self.prompt.tokens + completion,
    }
    return usage | ({"saved_tokens": self.saved_tokens} if self.request.form else {})

  def whole(self) -> dict[str, Any]:
    """Returns the object of the finished answers."""
    choices = [
      {
        "index": index,
        "message": {"role": "assistant", "content": sample.text, "refusal": None},
        "logprobs": self._logprobs(sample.tokens),
        "finish_reason": sample.finished,
      }
      for index, sample in enumerate(self.samples)
    ]
    return {
      **self._head,
      "object": "chat.completion",
      "choices": choices,
      "usage": self.usage,
    } | self._spatial(self.samples[0])

  def opening(self) -> list[dict[str, Any]]:
    """Returns the first chunk of each answer, with its role."""
    delta = {"role": "assistant", "content": "", "refusal": None}
    return [self._chunk(index, delta, [], None) for index in range(len(self.samples))]

  def chunk(self, piece: Piece) -> dict[str, Any]:
    """Returns the chunk of a piece, which was added; the last of an answer has its reading too."""
    delta = {"content": piece.text} if piece.text or not piece.finished else {}
    chunk = self._chunk(piece.sample, delta, piece.tokens, piece.finished)
    return chunk | (self._spatial(self.samples[piece.sample]) if piece.finished else {})

  def closing(self) -> list[dict[str, Any]]:
    """Returns the chunk with the usage, if it was asked for."""
    if not self.request.include_usage:
      return []
    return [{**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self.usage}]

  def _chunk(
    self,
    index: int,
    delta: dict[str, Any],
    tokens: Sequence[TokenLogprob],
    finished: str | None,
  ) -> dict[str, Any]:
    choice = {
      "index": index,
      "delta": delta,
      "logprobs": self._logprobs(tokens),
      "finish_reason": finished,
    }
    usage = {"usage": None} if self.request.include_usage else {}
    return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **usage}

  def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not self.request.logprobs:
      return None
    return {"content": [token.content for token in tokens], "refusal": None}

  def _spatial(self, sample: Sample) -> dict[str, Any]:
    """Returns the field `spatial_vlm` of an answer in the project's own words."""
    if not self.request.form:
      return {}
    parsed = self.task.grammar.parse(sample.text) if sample.finished == "stop" else None
    behavior = self.prompt.behavior
    reading = {
      "behavior": behavior.name if behavior else None,
      "saved_tokens": self.saved_tokens,
      "boxes": answers.parse_boxes(sample.text),
      "verdict": parsed.verdict if parsed else None,
    }
    return {"spatial_vlm": reading}


def event(content: dict[str, Any]) -> bytes:
  """Returns a server-sent event."""
  return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
"""The event that ends a stream."""
