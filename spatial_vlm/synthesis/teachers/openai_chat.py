"""Any model behind an OpenAI-compatible endpoint as a teacher, such as an open one served by vLLM."""

import asyncio
import base64
import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any, Self

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.teacher import Busy, Lost, Question, Reply, Usage
from spatial_vlm.synthesis.teachers import wire

OPENAI_URL = "https://api.openai.com/v1"
KEYS = ("OPENAI_API_KEY",)
"""Environment variables with the key."""

_FINISH = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
"""Reasons that other teachers give too, in their words."""


@dataclasses.dataclass(frozen=True)
class OpenAIChatSettings:
  """How every question is asked."""

  model: str
  base_url: str
  """With the version, such as `http://127.0.0.1:8000/v1`; empty for OpenAI's own."""
  timeout_s: float
  """For one whole request."""
  temperature: float
  max_output_tokens: int
  """With the reasoning, where the model thinks before it answers."""


def check(settings: OpenAIChatSettings) -> None:
  """Raises UsageError for settings that cannot work."""
  if not settings.model:
    raise UsageError("model is empty; give its name, as the server lists it under /v1/models")
  if settings.base_url:
    wire.check_url(settings.base_url)
  wire.check_sampling(settings.timeout_s, settings.max_output_tokens, settings.temperature)


def key_from_environment(base_url: str) -> str:
  """The API key, which a server on this machine may do without: "" there. Raises UsageError where one is missing."""
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
      api_key=key or "none",  # the library insists on one
      base_url=settings.base_url or OPENAI_URL,  # said here, not by an environment variable
      timeout=settings.timeout_s,
      max_retries=0,
      http_client=self._openai.DefaultAsyncHttpxClient(
        trust_env=not wire.is_local(settings.base_url),  # proxies
        follow_redirects=False,
      ),
    )

  async def __aenter__(self) -> Self:
    return self

  async def __aexit__(self, *error: object) -> None:
    await self._client.close()

  async def ask(self, question: Question) -> Reply:
    """See Teacher."""
    # The errors of the library hold what the server wrote: none of them is kept as a cause.
    try:
      async with asyncio.timeout(self.settings.timeout_s):
        response = await self._client.chat.completions.with_raw_response.create(
          **self._request(question)
        )
    except self._openai.APIStatusError as error:
      raise self._failure(error) from None
    except (TimeoutError, self._openai.APITimeoutError):
      raise Lost(f"no answer within timeout_s={self.settings.timeout_s}") from None
    except self._openai.APIConnectionError as error:
      # Whether anything was sent is known only to the error that caused this one.
      kind = type(error.__cause__).__name__
      text = wire.told(f"{error} ({kind}: {error.__cause__})", self._key)
      raise (Busy if kind in ("ConnectError", "ConnectTimeout", "PoolTimeout") else Lost)(
        text
      ) from None
    raw = wire.read_body(response.http_response.text, self._key)
    try:
      return _reply(raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
      raise Lost(f"this is no chat completion ({error!r}): {str(raw)[:300]}") from None

  def _request(self, question: Question) -> dict[str, Any]:
    system = {"role": "system", "content": question.system}
    picture = f"data:{question.mime_type};base64,{base64.b64encode(question.image).decode()}"
    request: dict[str, Any] = {
      "model": self.settings.model,
      "messages": [
        *([system] if question.system else []),
        {
          "role": "user",
          "content": [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question.text},
          ],
        },
      ],
      "temperature": self.settings.temperature,
      "max_completion_tokens": self.settings.max_output_tokens,
      "seed": question.seed,
    }
    if question.schema is not None:
      schema = {"name": "answer", "schema": question.schema}
      request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request

  def _failure(self, error: Any) -> Exception:
    """What an error of the API means."""
    message = wire.told(str(error.message), self._key)
    if error.code == "insufficient_quota":  # of money; with status 429, as if it would pass
      return UsageError(f"{message}; the account cannot pay")
    if error.status_code == 404:
      message += f" (model {self.settings.model})"
    wait_s = wire.seconds_to_wait(
      error.response.headers.get("Retry-After"), datetime.datetime.now(datetime.UTC)
    )
    return wire.failure(error.status_code, message, wait_s)


def _reply(raw: Mapping[str, Any]) -> Reply:
  choice, usage = raw["choices"][0], raw.get("usage") or {}
  thoughts = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
  spent = Usage(
    prompt=int(usage.get("prompt_tokens") or 0),
    cached=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    answer=int(usage.get("completion_tokens") or 0) - thoughts,
    thoughts=thoughts,
  )
  message = choice["message"]
  finish = str(choice["finish_reason"])
  finish = "REFUSAL" if message.get("refusal") else _FINISH.get(finish, finish.upper())
  return Reply(message.get("content") or None, finish, str(raw["model"]), spent, dict(raw))


def _import_openai() -> Any:
  try:
    import openai
  except ImportError as error:
    raise UsageError(
      "asking an OpenAI-compatible endpoint needs openai; install spatial-vlm[synthesis]"
    ) from error
  return openai
