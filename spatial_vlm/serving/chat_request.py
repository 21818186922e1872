"""Requests of OpenAI's chat completions: JSON in, checked values out.

Everything a client sends is untrusted. A field with a wrong value raises `ApiError`, which names the field. Fields that
would change the answer and are not implemented are accepted at their neutral value only; unknown fields are ignored.
"""

import dataclasses
import json
import math
import re
from typing import Any, NamedTuple

from spatial_vlm.serving.api_error import invalid
from spatial_vlm.serving.fields import boolean, choice, integer, mapping, number, shown, string

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
FORMS = ("chain", "short", "direct")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role in a request → role in the chat template."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
  "audio": (),
  "best_of": (1,),
  "frequency_penalty": (0,),
  "function_call": ("none",),
  "functions": ([],),
  "logit_bias": ({},),
  "min_p": (0,),
  "min_tokens": (0,),
  "modalities": (["text"],),
  "presence_penalty": (0,),
  "repetition_penalty": (1,),
  "response_format": ({"type": "text"},),
  "tool_choice": ("none", "auto"),
  "tools": ([],),
  "top_logprobs": (0,),
}
"""Fields that are not implemented → values that ask for nothing; null always does."""


class ImageUrl(NamedTuple):
  """An image of a request."""

  url: str
  param: str
  """Where it stands in the request."""


class Turn(NamedTuple):
  """One message."""

  role: str
  parts: tuple[str | ImageUrl, ...]


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What requests get that do not say, and the most they may ask for."""

  model: str
  """Name of the model."""
  max_new_tokens: int
  temperature: float
  samples: int
  """Most answers of one request."""
  text_characters: int
  """Most characters of all texts together."""
  images: int


@dataclasses.dataclass(frozen=True)
class ChatRequest:
  """A checked request."""

  turns: tuple[Turn, ...]
  max_new_tokens: int
  temperature: float
  top_p: float
  top_k: int
  """0: all tokens."""
  samples: int
  seed: int | None
  stop: tuple[str, ...]
  logprobs: bool
  stream: bool
  include_usage: bool
  form: str | None
  """Form in which a plain statement is answered; None: the texts go to the model as they are."""
  behaviors: bool | None
  """Whether a behavior is recalled; None: where the server has some."""

  @property
  def image_urls(self) -> list[ImageUrl]:
    """All images, in the order of the texts."""
    return [part for turn in self.turns for part in turn.parts if isinstance(part, ImageUrl)]


def parse_chat_request(body: bytes, defaults: Defaults) -> ChatRequest:
  """Returns the request in `body`; ApiError for anything that is not one."""
  data = _json_object(body)
  _check_model(data, defaults.model)
  _check_neutral(data)
  form, behaviors = _spatial(data)
  stream = boolean(data, "stream")
  options = mapping(data, "stream_options")
  if options and not stream:
    raise invalid("stream_options is only allowed with stream: true", "stream_options")
  request = ChatRequest(
    turns=_turns(data),
    max_new_tokens=_max_new_tokens(data, defaults.max_new_tokens),
    temperature=number(data, "temperature", defaults.temperature, (0.0, 2.0)),
    top_p=number(data, "top_p", 1.0, (1e-6, 1.0)),
    top_k=max(0, integer(data, "top_k", 0, (-1, 2**31 - 1))),
    samples=integer(data, "n", 1, (1, defaults.samples)),
    seed=None if data.get("seed") is None else integer(data, "seed", 0, (-(2**63), 2**63 - 1)),
    stop=_stop(data),
    logprobs=boolean(data, "logprobs"),
    stream=stream,
    include_usage=boolean(options, "include_usage", "stream_options.include_usage"),
    form=form,
    behaviors=behaviors,
  )
  _check_size(request, defaults)
  return request


def _json_object(body: bytes) -> dict[str, Any]:
  try:
    data = json.loads(body.decode(), parse_constant=_refuse_constant)
    if _SURROGATE.search(body):
      # Half a surrogate pair is valid JSON and no Unicode: no tokenizer reads it.
      json.dumps(data, ensure_ascii=False).encode()
  except (ValueError, RecursionError) as error:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
    raise invalid(f"the body is not JSON in UTF-8: {reason}") from error
  if not isinstance(data, dict):
    raise invalid(f"the body is {shown(data)}; give a JSON object")
  return data


def _refuse_constant(name: str) -> None:
  raise ValueError(f"{name} is not JSON")


def _check_model(data: dict[str, Any], name: str) -> None:
  model = string(data, "model")
  if model != name:
    error = invalid(
      f"the model {shown(model)} does not exist; this server has {name!r}",
      "model",
      "model_not_found",
    )
    error.status = 404
    raise error


def _check_neutral(data: dict[str, Any]) -> None:
  for name, allowed in NEUTRAL.items():
    value = data.get(name)
    if value is not None and not any(_same(value, neutral) for neutral in allowed):
      leave = f" or give {json.dumps(allowed[0])}" if allowed else ""
      raise invalid(
        f"{name} is {shown(value)}, which is not supported; leave it out{leave}",
        name,
        "unsupported_parameter",
      )


def _same(value: Any, neutral: Any) -> bool:
  return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _spatial(data: dict[str, Any]) -> tuple[str | None, bool | None]:
  """Returns the form of the answer and whether a behavior is recalled."""
  extra = mapping(data, "spatial_vlm")
  behaviors = boolean(extra, "behaviors", "spatial_vlm.behaviors") if "behaviors" in extra else None
  form = choice(extra, "form", FORMS, "spatial_vlm.form")
  if form is None and behaviors:
    form = "chain"
  return form, behaviors


def _max_new_tokens(data: dict[str, Any], limit: int) -> int:
  names = [n for n in ("max_completion_tokens", "max_tokens") if data.get(n) is not None]
  values = {integer(data, name, limit, (1, limit)) for name in names}
  if len(values) > 1:
    raise invalid("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
  return values.pop() if values else limit


def _stop(data: dict[str, Any]) -> tuple[str, ...]:
  value = data.get("stop")
  stops = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(stops, list) or len(stops) > MAX_STOPS:
    raise invalid(f"stop is {shown(value)}; give a string or up to {MAX_STOPS} strings", "stop")
  for stop in stops:
    if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
      raise invalid(
        f"stop has {shown(stop)}; give strings of 1 to {MAX_STOP_CHARACTERS} characters", "stop"
      )
  return tuple(stops)


def _turns(data: dict[str, Any]) -> tuple[Turn, ...]:
  messages = data.get("messages")
  if not isinstance(messages, list) or not messages:
    raise invalid(f"messages is {shown(messages)}; give a list of messages", "messages")
  return tuple(_turn(message, f"messages[{n}]") for n, message in enumerate(messages))


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


def _check_size(request: ChatRequest, defaults: Defaults) -> None:
  texts = [part for turn in request.turns for part in turn.parts if isinstance(part, str)]
  # The bound keeps long bodies from the tokenizer; it is far above what fits in the prompt's tokens.
  if (length := math.fsum(map(len, texts))) > defaults.text_characters:
    raise invalid(
      f"the messages have {length:.0f} characters; at most {defaults.text_characters} are read: shorten them",
      "messages",
      "context_length_exceeded",
    )
  if (count := len(request.image_urls)) > defaults.images:
    raise invalid(
      f"the messages have {count} images; at most {defaults.images} are allowed", "messages"
    )
