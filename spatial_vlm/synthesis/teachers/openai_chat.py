"""A model behind an OpenAI-compatible endpoint as a teacher, such as an open model served by vLLM."""

import asyncio
import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, Self

from spatial_vlm import extras
from spatial_vlm.config import UsageError
from spatial_vlm.processor.image import data_url
from spatial_vlm.synthesis.errors import BusyError, LostError
from spatial_vlm.synthesis.teacher import Question, Reply, Usage
from spatial_vlm.synthesis.teachers import wire

OPENAI_URL = "https://api.openai.com/v1"
KEYS = ("OPENAI_API_KEY",)
"""Environment variables of the API key."""

_REMEDIES = {
  "temperature": "set temperature=none, which leaves it out",
  "max_completion_tokens": "the server must take it, as OpenAI's and vLLM's do; update the server",
  "max_tokens": "lower max_output_tokens, or serve the model with more tokens",
  "seed": "the server must take a seed, as OpenAI's and vLLM's do; update the server",
  "response_format": "the server must take JSON schemas, as OpenAI's and vLLM's do; update the server",
}
"""Field of a request → what to do if the server rejects it."""
_FINISH = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
"""Finish reasons of OpenAI → the names that all teachers use."""


@dataclasses.dataclass(frozen=True)
class OpenAIChatSettings:
  """Settings of every request."""

  model: str
  base_url: str
  """Includes the version, such as `http://127.0.0.1:8000/v1`; empty for OpenAI's."""
  timeout_s: float
  """Limit for one whole request."""
  temperature: float | None
  """None leaves it out, for models that refuse it."""
  max_output_tokens: int
  """Includes reasoning tokens of models that think before they answer."""


def check(settings: OpenAIChatSettings) -> None:
  """Raises UsageError for settings that cannot work."""
  if not settings.model:
    raise UsageError("model is empty; give a name that the server lists under /v1/models")
  if settings.base_url:
    wire.check_url(settings.base_url)
  wire.check_sampling(settings.timeout_s, settings.max_output_tokens, settings.temperature)


def key_from_environment(base_url: str) -> str:
  """Returns the API key, "" for a local server without one; raises UsageError if a remote server lacks one."""
  key = wire.read_key(KEYS)
  if not key and not wire.is_local(base_url):
    raise UsageError(
      f"{base_url or OPENAI_URL} needs an API key: set the environment variable OPENAI_API_KEY"
    )
  return key


class OpenAIChatTeacher:
  """Asks through `/chat/completions`, as `async with OpenAIChatTeacher(settings, key) as teacher`."""

  def __init__(self, settings: OpenAIChatSettings, key: str):
    check(settings)
    self.settings = settings
    self._key = key
    self._openai = _import_openai()
    self._client = self._openai.AsyncOpenAI(
      api_key=key or "none",  # the library requires a key
      base_url=settings.base_url or OPENAI_URL,  # so that no environment variable can change it
      timeout=settings.timeout_s,
      max_retries=0,
      http_client=self._openai.DefaultAsyncHttpxClient(
        trust_env=not wire.is_local(settings.base_url),  # no proxies to this machine
        follow_redirects=False,
      ),
    )

  async def __aenter__(self) -> Self:
    return self

  async def __aexit__(self, *error: object) -> None:
    await self._client.close()

  async def ask(self, question: Question) -> Reply:
    """See Teacher."""
    # The library's errors contain the server's text, which may repeat the key. `from None` drops them.
    try:
      async with asyncio.timeout(self.settings.timeout_s):
        response = await self._client.chat.completions.with_raw_response.create(
          **self._request(question)
        )
    except self._openai.APIStatusError as error:
      raise self._translate(error) from None
    except (TimeoutError, self._openai.APITimeoutError):
      raise LostError(f"no answer within timeout_s={self.settings.timeout_s}") from None
    except self._openai.APIConnectionError as error:
      # Only the cause tells whether the request was sent.
      kind = type(error.__cause__).__name__
      text = wire.redact_message(f"{error} ({kind}: {error.__cause__})", self._key)
      raise (BusyError if kind in ("ConnectError", "ConnectTimeout", "PoolTimeout") else LostError)(
        text
      ) from None
    raw = wire.read_body(response.http_response.text, self._key)
    try:
      return _reply(raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
      raise LostError(f"this is no chat completion ({error!r}): {str(raw)[:300]}") from None

  def _request(self, question: Question) -> dict[str, Any]:
    system = {"role": "system", "content": question.system}
    content: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
    if question.image:
      url = data_url(question.image, question.mime_type)
      content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    request: dict[str, Any] = {
      "model": self.settings.model,
      "messages": [
        *([system] if question.system else []),
        {"role": "user", "content": content},
      ],
      "max_completion_tokens": self.settings.max_output_tokens,
      "seed": question.seed,
    }
    if self.settings.temperature is not None:
      request["temperature"] = self.settings.temperature
    if question.schema is not None:
      schema = {"name": "answer", "schema": question.schema}
      request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request

  def _translate(self, error: Any) -> Exception:
    """Returns the error for an APIStatusError."""
    message = wire.redact_message(str(error.message), self._key)
    if error.status_code in (400, 422) and (remedy := self._remedy(error, message)):
      return UsageError(f"{error.status_code}: {message}; {remedy}")
    if error.code == "insufficient_quota":  # out of money; the status, 429, looks temporary
      return UsageError(f"{message}; the account cannot pay")
    if error.status_code == 404:
      message += f" (model {self.settings.model})"
    wait_s = wire.seconds_to_wait(
      error.response.headers.get("Retry-After"), datetime.datetime.now(datetime.UTC)
    )
    return wire.status_error(error.status_code, message, wait_s)

  def _remedy(self, error: Any, message: str) -> str:
    """Returns what to do about a setting that the server rejects, as it would for every question; "" for no setting."""
    rejected = (name for name in _REMEDIES if name == error.param or f"{name}'" in message)
    return _REMEDIES.get(next(rejected, ""), "")


def _reply(raw: Mapping[str, Any]) -> Reply:
  """Parses a chat completion.

  The text of a server that puts the whole answer of a thinking model into its reasoning is taken from there.
  """
  choice, message = raw["choices"][0], raw["choices"][0]["message"]
  finish = str(choice["finish_reason"])
  finish = "REFUSAL" if message.get("refusal") else _FINISH.get(finish, finish.upper())
  texts = (message.get(name) for name in ("content", "reasoning_content", "reasoning"))
  text = (
    None if message.get("refusal") else next((t for t in texts if isinstance(t, str) and t), None)
  )
  return Reply(text, finish, str(raw["model"]), _usage(raw.get("usage") or {}), dict(raw))


def _usage(usage: Mapping[str, Any]) -> Usage:
  """Returns the billed tokens; all 0 if the server does not tell them.

  OpenAI counts reasoning tokens among those of the completion. Other servers report them apart: their total says so,
  or there are more of them than of the completion.
  """
  count = wire.token_count
  prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
  thoughts = count(usage.get("completion_tokens_details") or {}, "reasoning_tokens")
  cached = count(usage.get("prompt_tokens_details") or {}, "cached_tokens")
  total = count(usage, "total_tokens")
  is_apart = thoughts > completion or (thoughts and total == prompt + completion + thoughts)
  answer = completion if is_apart else completion - thoughts
  return Usage(prompt, min(cached, prompt), answer, thoughts)


def _import_openai() -> Any:
  """Imports openai."""
  try:
    import openai
  except ImportError as error:
    raise UsageError(extras.need("synthesis", "the teacher openai", ["openai"])) from error
  return openai
