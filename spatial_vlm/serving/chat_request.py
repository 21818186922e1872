"""Requests of OpenAI's chat completions: JSON in, checked values out.

Everything a client sends is untrusted. A field with a wrong value raises `ApiError`, which names the field. Fields that
would change the answer and are not implemented are accepted at their neutral value only; unknown fields are ignored.
"""

import dataclasses
import json
from typing import Any

from spatial_vlm.jsonl import parse_json
from spatial_vlm.serving.api_error import invalid
from spatial_vlm.serving.chat_messages import ImageUrl, MessageLimits, Turn, image_urls, read_turns
from spatial_vlm.serving.fields import boolean, choice, integer, mapping, number, shown, string

GREEDY_TEMPERATURE = 1e-5
"""Lower temperatures take the likeliest token, as in vLLM: logits divided by them would overflow."""
MAX_TOP_LOGPROBS = 20
"""Most likeliest tokens at each place, as at OpenAI."""
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200
FORMS = ("chain", "short", "direct")
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
}
"""Fields that are not implemented → values that ask for nothing; null always does."""


@dataclasses.dataclass(frozen=True)
class Defaults:
  """Values of fields that a request leaves out, and limits."""

  model: str
  """Name of the model."""
  max_new_tokens: int
  """Default and maximum: larger values of a request are lowered to it."""
  temperature: float
  samples: int
  """Most answers of one request."""
  messages: MessageLimits
  commas: int
  """Most commas of a body: they bound the number of JSON values before the body is parsed."""


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
  top_logprobs: int
  """Likeliest tokens that are returned with each token."""
  stream: bool
  include_usage: bool
  form: str | None
  """Form in which a plain statement is answered; None: the texts go to the model as they are."""
  behaviors: bool | None
  """Whether a behavior is recalled; None: where the server has some."""

  @property
  def image_urls(self) -> list[ImageUrl]:
    """All images, in the order of the texts."""
    return image_urls(self.turns)


def parse_chat_request(body: bytes, defaults: Defaults) -> ChatRequest:
  """Returns the request in `body`; ApiError for anything that is not one."""
  if (commas := body.count(b",")) > defaults.commas:
    raise invalid(
      f"the body has {commas} commas; at most {defaults.commas} are read: shorten the messages",
      "messages",
      "context_length_exceeded",
    )
  data = _json_object(body)
  _check_model(data, defaults.model)
  _check_neutral(data)
  form, behaviors = _spatial(data)
  stream = boolean(data, "stream")
  logprobs = boolean(data, "logprobs")
  top_logprobs = integer(data, "top_logprobs", 0, (0, MAX_TOP_LOGPROBS))
  if top_logprobs and not logprobs:
    raise invalid("top_logprobs is only allowed with logprobs: true", "top_logprobs")
  options = mapping(data, "stream_options")
  if options and not stream:
    raise invalid("stream_options is only allowed with stream: true", "stream_options")
  return ChatRequest(
    turns=read_turns(data, defaults.messages),
    max_new_tokens=_max_new_tokens(data, defaults.max_new_tokens),
    temperature=_temperature(data, defaults.temperature),
    top_p=number(data, "top_p", 1.0, (1e-6, 1.0)),
    top_k=max(0, integer(data, "top_k", 0, (-1, 2**31 - 1))),
    samples=integer(data, "n", 1, (1, defaults.samples)),
    seed=None if data.get("seed") is None else integer(data, "seed", 0, (-(2**63), 2**63 - 1)),
    stop=_stop(data),
    logprobs=logprobs,
    top_logprobs=top_logprobs,
    stream=stream,
    include_usage=boolean(options, "include_usage", "stream_options.include_usage"),
    form=form,
    behaviors=behaviors,
  )


def _json_object(body: bytes) -> dict[str, Any]:
  try:
    data = parse_json(body, _refuse_constant)
  except ValueError as error:
    raise invalid(f"the body is not JSON in UTF-8: {error}") from error
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


def _temperature(data: dict[str, Any], default: float) -> float:
  value = number(data, "temperature", default, (0.0, 2.0))
  return value if value >= GREEDY_TEMPERATURE else 0.0


def _max_new_tokens(data: dict[str, Any], limit: int) -> int:
  """Returns the request's limit, lowered to the server's: many clients always send a large one."""
  names = [n for n in ("max_completion_tokens", "max_tokens") if data.get(n) is not None]
  values = {integer(data, name, limit, (1, 2**31 - 1)) for name in names}
  if len(values) > 1:
    raise invalid("max_tokens and max_completion_tokens differ; give one of them", "max_tokens")
  return min({limit, *values})


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
