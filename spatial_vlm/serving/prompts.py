"""Prompts of requests: conversations as they are, and plain statements in the project's own words."""

import dataclasses
from collections.abc import Sequence

import PIL.Image

from spatial_vlm.data.records import UnusableRecord
from spatial_vlm.inference.policy import PromptFormat, encode_question
from spatial_vlm.inference.questions import QuestionBuilder, Recall
from spatial_vlm.processor.chat import Encoded, Processor, Size, encode
from spatial_vlm.reuse.handbook.behavior import Behavior
from spatial_vlm.rollout.prefix_cache import Text
from spatial_vlm.serving.api_error import invalid
from spatial_vlm.serving.chat_messages import ImageUrl
from spatial_vlm.serving.chat_request import ChatRequest
from spatial_vlm.tasks.task import Task

MAX_STATEMENT_CHARACTERS = 1000
"""Longest plain statement: its relation is read before it is asked."""


@dataclasses.dataclass(frozen=True)
class Prompt:
  """An encoded request."""

  prefix: Text
  """Tokens that the prefix cache holds."""
  rest: Encoded
  tokens: int
  """Number of all tokens."""
  behavior: Behavior | None = None


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
  """Encodes requests; one thread calls it."""

  task: Task
  processor: Processor
  format: PromptFormat
  recall: Recall | None = None

  def __call__(self, request: ChatRequest, images: Sequence[PIL.Image.Image]) -> Prompt:
    """Returns the prompt of a request with its decoded images; ApiError for one that cannot be asked."""
    try:
      row, behavior = self._encoded(request, images)
    except ValueError as error:  # UnreadableImage too
      raise invalid(str(error), "messages") from error
    # Clients' own system turns are not cached: a batch of many different ones would not fit in the cache.
    format = self.format if behavior else self.format._replace(prefix_tokens=0)
    try:
      format.check(row)
    except UnusableRecord as error:
      raise invalid(_too_large(row, format.limit), "messages", "context_length_exceeded") from error
    prefix, rest = format.split(row)
    return Prompt(prefix, rest, len(row.tokens), behavior)

  def _encoded(
    self, request: ChatRequest, images: Sequence[PIL.Image.Image]
  ) -> tuple[Encoded, Behavior | None]:
    if request.form is None:
      return encode(self.processor, _messages(request, images), generation_prompt=True), None
    statement = _statement(request)
    question = QuestionBuilder(self.task, request.form, self._recall(request))(statement)
    row = encode_question(self.processor, images[0], question.text, question.system)
    return row, question.behavior

  def _recall(self, request: ChatRequest) -> Recall | None:
    if request.behaviors and self.recall is None:
      raise invalid(
        "this server has no behaviors; start it with --behaviors DIR, or leave spatial_vlm.behaviors out",
        "spatial_vlm.behaviors",
      )
    asked = request.form != "direct" if request.behaviors is None else request.behaviors
    return self.recall if asked else None


def _too_large(row: Encoded, limit: Size) -> str:
  return (
    f"the messages have {len(row.tokens)} tokens and {row.patches} patches of images; this server reads up to "
    f"{limit.tokens} and {limit.patches}: shorten the text, or give fewer or smaller images"
  )


def _messages(request: ChatRequest, images: Sequence[PIL.Image.Image]) -> list[dict]:
  """Returns the turns in the format of `processor.chat.encode`."""
  left = iter(images)
  return [
    {
      "role": turn.role,
      "content": [
        {"type": "image", "image": next(left)}
        if isinstance(part, ImageUrl)
        else {"type": "text", "text": part}
        for part in turn.parts
      ],
    }
    for turn in request.turns
  ]


def _statement(request: ChatRequest) -> str:
  """Returns the statement of a request that is one image and one text of the user; ApiError for any other."""
  texts = [part for turn in request.turns for part in turn.parts if isinstance(part, str)]
  if (
    [turn.role for turn in request.turns] != ["user"]
    or len(texts) != 1
    or len(request.image_urls) != 1
  ):
    raise invalid(
      "with spatial_vlm.form, messages is one message of the user with one image and one text, the statement",
      "messages",
    )
  statement = texts[0].strip()
  if not 0 < len(statement) <= MAX_STATEMENT_CHARACTERS:
    raise invalid(
      f"the statement has {len(statement)} characters; give 1 to {MAX_STATEMENT_CHARACTERS}",
      "messages",
    )
  return statement
