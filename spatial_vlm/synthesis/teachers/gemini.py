"""Gemini as a teacher, through google-genai.

By default the library sends a question more than once: after a broken connection if aiohttp is installed, and while a
reply ends with CONTINUATION. Both are disabled here, because every request is billed.
"""

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from spatial_vlm import extras
from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError
from spatial_vlm.synthesis.teacher import Question, Reply, Usage
from spatial_vlm.synthesis.teachers import wire
from spatial_vlm.synthesis.teachers.gemini_models import THINKING_LEVELS, find_model

GOOGLE_URL = "https://generativelanguage.googleapis.com/"
KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Environment variables of the API key; the first that is set counts, as in google-genai."""

_DROPPED = ("thoughtSignature", "thought_signature")
"""Fields with encrypted thoughts (up to megabytes), useful only in a further turn of the same conversation."""
_ACCOUNT_ERRORS = ("API_KEY", "FAILED_PRECONDITION")
"""Words that mark an error 400 as one of the account, not of the question."""


@dataclasses.dataclass(frozen=True)
class GeminiSettings:
  """Settings of every request."""

  model: str
  api_version: str
  base_url: str
  """Address of the server; empty for Google's."""
  timeout_s: float
  """Limit for one whole request."""
  temperature: float | None
  """None leaves it out, for models that do not use it."""
  max_output_tokens: int
  """Includes thinking tokens."""
  thinking_budget: int | None
  """Thinking tokens, for Gemini 2.5; -1 lets the model decide. `gemini_models` lists what each model takes."""
  thinking_level: str | None
  """One of THINKING_LEVELS, for Gemini 3 and later."""


def check(settings: GeminiSettings) -> None:
  """Raises UsageError for settings that cannot work, alone or together."""
  if not settings.model.removeprefix("models/") or not settings.api_version:
    raise UsageError(
      f"model is {settings.model!r} and api_version is {settings.api_version!r}; give e.g. gemini-2.5-pro and v1beta"
    )
  if settings.base_url:
    wire.check_url(settings.base_url)
  wire.check_sampling(settings.timeout_s, settings.max_output_tokens, settings.temperature)
  _check_thinking(settings)
  model = find_model(settings.model)
  if settings.temperature is not None and model and not model.takes_temperature:
    raise UsageError(
      f"temperature is {settings.temperature}, but {model.name} does not use it; set temperature=none"
    )


def _check_thinking(settings: GeminiSettings) -> None:
  """Raises UsageError for a thinking budget or level that the model does not take."""
  budget, level = settings.thinking_budget, settings.thinking_level
  model = find_model(settings.model)
  levels = model.levels if model and model.levels else THINKING_LEVELS
  min_budget, max_budget = model.budget if model and model.budget else (0, 2**31)
  if budget is not None and level is not None:
    raise UsageError(
      f"thinking_budget is {budget} and thinking_level is {level!r}; give only one: Gemini 2.5 takes a budget, "
      "Gemini 3 and later a level"
    )
  if level is not None and model and not model.levels:
    raise UsageError(
      f"{settings.model} takes no thinking_level; give thinking_budget, in tokens, instead"
    )
  if budget is not None and model and model.budget is None:
    raise UsageError(
      f"{settings.model} takes no thinking_budget; give thinking_level, one of {', '.join(levels)}, instead"
    )
  if level is not None and level.lower() not in levels:
    raise UsageError(f"thinking_level is {level!r}; choose one of {', '.join(levels)}")
  if budget is not None and budget != -1 and not min_budget <= budget <= max_budget:
    raise UsageError(
      f"thinking_budget is {budget}; {settings.model} needs at least {min_budget} tokens and takes at most "
      f"{max_budget:,}, or -1 to let the model decide"
    )
  if budget is not None and budget >= settings.max_output_tokens:
    raise UsageError(
      f"thinking_budget is {budget} and max_output_tokens is {settings.max_output_tokens}, which includes "
      "thinking; leave room for the answer, or give -1 to let the model decide"
    )


def key_from_environment() -> str:
  """Returns the API key; raises UsageError if there is none."""
  if not (key := wire.read_key(KEYS)):
    raise UsageError("Gemini needs an API key: set the environment variable GEMINI_API_KEY")
  return key


class GeminiTeacher:
  """Asks Gemini, as `async with GeminiTeacher(settings, key) as teacher`; does not limit concurrent requests."""

  def __init__(self, settings: GeminiSettings, key: str):
    check(settings)
    self.settings = settings
    self._key = key
    self._genai, self._httpx = _import_genai()
    # This timeout limits single reads and writes; `ask` limits the whole request.
    self._http = self._httpx.AsyncClient(
      timeout=settings.timeout_s,
      limits=self._httpx.Limits(max_connections=None),
      trust_env=not wire.is_local(settings.base_url),  # no proxies to this machine
      follow_redirects=False,  # a redirect would receive the key
    )
    options = self._genai.types.HttpOptions(
      base_url=settings.base_url or GOOGLE_URL,  # so that no environment variable can change it
      api_version=settings.api_version,
      timeout=round(1000 * settings.timeout_s),
      httpx_async_client=self._http,
      retry_options=self._genai.types.HttpRetryOptions(attempts=1),
    )
    self._client = self._genai.Client(api_key=key, vertexai=False, http_options=options)

  async def __aenter__(self) -> Self:
    return self

  async def __aexit__(self, *error: object) -> None:
    self._client.close()
    await self._client.aio.aclose()
    await self._http.aclose()

  async def ask(self, question: Question) -> Reply:
    """See Teacher."""
    async with self.translate_errors(), asyncio.timeout(self.settings.timeout_s):
      response = await self._client.aio.models.generate_content(
        model=self.settings.model,
        contents=[self._content(question)],
        config=self._genai.types.GenerateContentConfig(
          **self._generation(question).model_dump(exclude_none=True),
          system_instruction=question.system or None,
          should_return_http_response=True,
          automatic_continuation=False,
          automatic_function_calling={"disable": True},
        ),
      )
    return self.read_reply(
      wire.read_body(response.sdk_http_response.body or "", self._key, _DROPPED)
    )

  def request(self, question: Question) -> dict[str, Any]:
    """Returns the body of the question's request, as a line of a batch file contains it."""
    system = {"systemInstruction": {"parts": [{"text": question.system}]}}
    return {
      "contents": [_dump(self._content(question))],
      **(system if question.system else {}),
      "generationConfig": _dump(self._generation(question)),
    }

  def read_row(self, line: str) -> dict[str, Any]:
    """Parses one line of a results file; raises LostError."""
    return wire.read_body(line, self._key, _DROPPED)

  def read_reply(self, raw: dict[str, Any]) -> Reply:
    """Parses a GenerateContentResponse; raises LostError for anything else."""
    try:
      return _reply(raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
      raise LostError(f"this is no reply of Gemini ({error!r}): {str(raw)[:300]}") from None

  @property
  def aio(self) -> Any:
    """The asynchronous google-genai client; call it inside `translate_errors`."""
    return self._client.aio

  @contextlib.asynccontextmanager
  async def translate_errors(self) -> AsyncIterator[None]:
    """Turns errors of the API into BusyError, LostError, RefusedError or UsageError, without the key."""
    # The libraries' errors contain the server's text, which may repeat the key. `from None` drops them.
    try:
      yield
    except self._genai.errors.APIError as error:
      raise self._translate(error) from None
    except (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.PoolTimeout) as error:
      raise BusyError(self._describe(error, "nothing was sent")) from None
    except (TimeoutError, self._httpx.TimeoutException):
      raise LostError(f"no answer within timeout_s={self.settings.timeout_s}") from None
    except self._httpx.HTTPError as error:
      raise LostError(self._describe(error, "the connection broke")) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise LostError(self._describe(error, "the server's response has another format")) from None

  def _content(self, question: Question) -> Any:
    types = self._genai.types
    parts = [types.Part(text=question.text)]
    if question.image:
      parts.insert(0, types.Part.from_bytes(data=question.image, mime_type=question.mime_type))
    return types.Content(role="user", parts=parts)

  def _generation(self, question: Question) -> Any:
    """Returns the GenerationConfig of a question."""
    types, settings = self._genai.types, self.settings
    thinking = None
    if settings.thinking_budget is not None:
      thinking = types.ThinkingConfig(thinking_budget=settings.thinking_budget)
    if settings.thinking_level is not None:
      thinking = types.ThinkingConfig(thinking_level=settings.thinking_level.upper())
    structured = question.schema is not None
    return types.GenerationConfig(
      temperature=settings.temperature,
      seed=question.seed,
      max_output_tokens=settings.max_output_tokens,
      thinking_config=thinking,
      response_mime_type="application/json" if structured else None,
      response_json_schema=_with_property_order(question.schema) if structured else None,
    )

  def _translate(self, error: Any) -> Exception:
    """Returns the error for an APIError."""
    details = error.details if isinstance(error.details, dict) else {}
    message = wire.redact_message(f"{error.status}. {error.message}", self._key)
    if error.code == 400 and any(word in str(details) for word in _ACCOUNT_ERRORS):
      return UsageError(f"400: {message}; check the key in the environment ({' or '.join(KEYS)})")
    if error.code == 404:
      message += f" (model {self.settings.model})"
    header = error.response.headers.get("Retry-After") if error.response is not None else None
    now = datetime.datetime.now(datetime.UTC)
    waits = [wire.seconds_to_wait(text, now) for text in (header, _retry_info(details))]
    wait_s = max((wait for wait in waits if wait is not None), default=None)
    return wire.status_error(error.code, message, wait_s)

  def _describe(self, error: Exception, what: str) -> str:
    """Returns a message without the key."""
    return wire.redact_message(f"{what} ({type(error).__name__}: {error})", self._key)


def _reply(raw: Mapping[str, Any]) -> Reply:
  """Parses a response body.

  A body with none of the expected fields is no reply. One without a candidate or finish reason was still billed.
  """
  if not raw.keys() & {"candidates", "promptFeedback", "usageMetadata"}:
    raise KeyError("candidates")
  usage = raw.get("usageMetadata") or {}
  spent = Usage(
    prompt=wire.token_count(usage, "promptTokenCount"),
    cached=wire.token_count(usage, "cachedContentTokenCount"),
    answer=wire.token_count(usage, "candidatesTokenCount"),
    thoughts=wire.token_count(usage, "thoughtsTokenCount"),
  )
  version = str(raw.get("modelVersion") or "")
  if not raw.get("candidates"):
    blocked = (raw.get("promptFeedback") or {}).get("blockReason")
    return Reply(None, str(blocked or "NO_CANDIDATE").upper(), version, spent, dict(raw))
  candidate = raw["candidates"][0]
  parts = (candidate.get("content") or {}).get("parts") or []
  text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
  finish = candidate.get("finishReason") or "FINISH_REASON_UNSPECIFIED"
  return Reply(text or None, str(finish).upper(), version, spent, dict(raw))


def _with_property_order(schema: Any) -> Any:
  """Adds `propertyOrdering` to the schema, so that the model reasons before it concludes."""
  if isinstance(schema, list):
    return [_with_property_order(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  ordered = {name: _with_property_order(value) for name, value in schema.items()}
  if isinstance(properties := schema.get("properties"), dict) and schema.get("type") == "object":
    ordered.setdefault("propertyOrdering", list(properties))
  return ordered


def _retry_info(details: Mapping[str, Any]) -> str | None:
  """Returns the delay of google.rpc.RetryInfo, such as "7" for "7s"; None without one."""
  error = details.get("error", details)
  listed = error.get("details") if isinstance(error, dict) else None
  for item in listed if isinstance(listed, list) else []:
    if isinstance(item, dict) and str(item.get("@type", "")).endswith("google.rpc.RetryInfo"):
      return str(item.get("retryDelay", "")).removesuffix("s")
  return None


def _dump(model: Any) -> dict[str, Any]:
  return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _import_genai() -> tuple[Any, Any]:
  """Imports google-genai and its transport, httpx2."""
  try:
    import httpx2
    from google import genai
    from google.genai import errors, types  # noqa: F401  # makes them attributes of genai
  except ImportError as error:
    raise UsageError(extras.need("synthesis", "the teacher gemini", ["google-genai"])) from error
  return genai, httpx2
