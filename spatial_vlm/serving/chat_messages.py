"""Messages of a request: turns of texts and images."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spatial_vlm.serving.api_error import invalid
from spatial_vlm.serving.fields import choice, mapping, shown, string

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role in a request → role in the chat template."""


class ImageUrl(NamedTuple):
  """An image of a request."""

  url: str
  param: str
  """Where it stands in the request."""


class Turn(NamedTuple):
  """One message."""

  role: str
  parts: tuple[str | ImageUrl, ...]


class MessageLimits(NamedTuple):
  """Most of each in one request."""

  characters: int
  """Of all texts together."""
  turns: int
  parts: int
  """Texts and images of all turns together."""
  images: int


def image_urls(turns: Sequence[Turn]) -> list[ImageUrl]:
  """Returns all images, in the order of the texts."""
  return [part for turn in turns for part in turn.parts if isinstance(part, ImageUrl)]


def read_turns(data: dict[str, Any], limits: MessageLimits) -> tuple[Turn, ...]:
  """Returns the turns of a request; ApiError for messages that are malformed or exceed a limit."""
  messages = data.get("messages")
  if not isinstance(messages, list) or not messages:
    raise invalid(f"messages is {shown(messages)}; give a list of messages", "messages")
  _check_count(len(messages), limits.turns, "messages")
  contents = [message.get("content") for message in messages if isinstance(message, dict)]
  parts = sum(len(content) if isinstance(content, list) else 1 for content in contents)
  _check_count(parts, limits.parts, "parts of messages")
  turns = tuple(_turn(message, f"messages[{n}]") for n, message in enumerate(messages))
  _check_size(turns, limits)
  return turns


def _check_count(count: int, most: int, name: str) -> None:
  if count > most:
    raise invalid(
      f"the request has {count} {name}; at most {most} are read: leave some out",
      "messages",
      "context_length_exceeded",
    )


def _turn(message: Any, where: str) -> Turn:
  if not isinstance(message, dict):
    raise invalid(f"{where} is {shown(message)}; give an object with role and content", where)
  role = choice(message, "role", tuple(ROLES), f"{where}.role")
  if role is None:
    raise invalid(f"{where} has no role; give one of {', '.join(ROLES)}", f"{where}.role")
  content, where = message.get("content"), f"{where}.content"
  if isinstance(content, str):
    return Turn(ROLES[role], (content,))
  if not isinstance(content, list) or not content:
    raise invalid(f"{where} is {shown(content)}; give a string or a list of parts", where)
  return Turn(ROLES[role], tuple(_part(part, f"{where}[{n}]") for n, part in enumerate(content)))


def _part(part: Any, where: str) -> str | ImageUrl:
  kind = part.get("type") if isinstance(part, dict) else None
  if kind == "text":
    return string(part, "text", f"{where}.text")
  if kind == "image_url":
    image = mapping(part, "image_url", f"{where}.image_url")
    choice(image, "detail", ("auto", "low", "high"), f"{where}.image_url.detail")
    url = f"{where}.image_url.url"
    return ImageUrl(string(image, "url", url), url)
  raise invalid(
    f"{where} is a part of type {shown(kind)}; allowed are 'text' and 'image_url'", f"{where}.type"
  )


def _check_size(turns: Sequence[Turn], limits: MessageLimits) -> None:
  texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
  # The bound keeps long bodies from the tokenizer; it is far above what fits in the prompt's tokens.
  if (length := math.fsum(map(len, texts))) > limits.characters:
    raise invalid(
      f"the messages have {length:.0f} characters; at most {limits.characters} are read: shorten them",
      "messages",
      "context_length_exceeded",
    )
  if (count := len(image_urls(turns))) > limits.images:
    raise invalid(
      f"the messages have {count} images; at most {limits.images} are allowed", "messages"
    )
