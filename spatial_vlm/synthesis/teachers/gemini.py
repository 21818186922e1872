"""Gemini as a teacher, through google-genai: questions on the wire, and replies as the API writes them.

The library would by itself send a question more than once: on a broken connection where aiohttp is installed, and
as long as a reply ends with CONTINUATION. Both are switched off here, since whatever is sent is billed.
"""

import asyncio
import contextlib
import dataclasses
import datetime
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.teacher import Busy, Lost, Question, Reply, Usage
from spatial_vlm.synthesis.teachers import wire

GOOGLE_URL = "https://generativelanguage.googleapis.com/"
KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
"""Environment variables with the key; the first that is set counts, as in google-genai."""
THINKING_LEVELS = ("minimal", "low", "medium", "high", "xhigh")

_DROPPED = ("thoughtSignature", "thought_signature")
"""Encrypted thoughts, up to megabytes of them, which only a further turn of the same conversation could use."""
_LEAST_BUDGET = 128
"""Thinking tokens of Gemini 2.5 Pro, which cannot do without."""
_EVERY_QUESTION = ("API_KEY", "FAILED_PRECONDITION")
"""What in an error 400 speaks of the account, not of the question."""


@dataclasses.dataclass(frozen=True)
class GeminiSettings:
  """How every question is asked."""

  model: str
  api_version: str
  base_url: str
  """Empty for Google's own."""
  timeout_s: float
  """For one whole request."""
  temperature: float
  max_output_tokens: int
  """With the thoughts."""
  thinking_budget: int | None
  """Tokens, for Gemini 2.5; -1 leaves it to the model."""
  thinking_level: str | None
  """One of THINKING_LEVELS, for Gemini 3 and later."""


def check(settings: GeminiSettings) -> None:
  """Raises UsageError for settings that cannot work, or cannot work together."""
  budget, level = settings.thinking_budget, settings.thinking_level
  family = settings.model.removeprefix("models/")
  least = _LEAST_BUDGET if family.startswith("gemini-2.5-pro") else 0
  if not family or not settings.api_version:
    raise UsageError(
      f"model is {settings.model!r} and api_version is {settings.api_version!r}; give e.g. gemini-2.5-pro and v1beta"
    )
  if settings.base_url:
    wire.check_url(settings.base_url)
  wire.check_sampling(settings.timeout_s, settings.max_output_tokens, settings.temperature)
  if budget is not None and level is not None:
    raise UsageError(
      f"thinking_budget is {budget} and thinking_level is {level!r}; give only one: Gemini 2.5 takes a budget, "
      "3.x a level"
    )
  if level is not None and family.startswith("gemini-2.5"):
    raise UsageError(f"{family} takes no thinking_level; give thinking_budget, in tokens, instead")
  if budget is not None and family.startswith("gemini-3"):
    raise UsageError(
      f"{family} takes no thinking_budget; give thinking_level, one of {', '.join(THINKING_LEVELS)}, instead"
    )
  if level is not None and level.lower() not in THINKING_LEVELS:
    raise UsageError(f"thinking_level is {level!r}; choose one of {', '.join(THINKING_LEVELS)}")
  if budget is not None and budget != -1 and budget < least:
    raise UsageError(
      f"thinking_budget is {budget}; {family} thinks with at least {least} tokens, or -1 to leave it to the model"
    )
  if budget is not None and budget >= settings.max_output_tokens:
    raise UsageError(
      f"thinking_budget is {budget} and max_output_tokens {settings.max_output_tokens}, which thoughts count towards; "
      "leave room for the answer, or give -1 to leave thinking to the model"
    )


def key_from_environment() -> str:
  """The API key; raises UsageError where there is none."""
  if not (key := wire.read_key(KEYS)):
    raise UsageError("Gemini needs an API key: set the environment variable GEMINI_API_KEY")
  return key


class GeminiTeacher:
  """Asks Gemini, as `async with GeminiTeacher(settings, key) as teacher`; nothing here limits how many at once."""

  def __init__(self, settings: GeminiSettings, key: str):
    check(settings)
    self.settings = settings
    self._key = key
    self._genai, self._httpx = _import_genai()
    # Its own timeouts are for single reads and writes, and are Google's to know; `ask` bounds the whole.
    self._http = self._httpx.AsyncClient(
      timeout=settings.timeout_s,
      limits=self._httpx.Limits(max_connections=None),
      trust_env=not wire.is_local(settings.base_url),  # proxies
      follow_redirects=False,  # the key would go along
    )
    options = self._genai.types.HttpOptions(
      base_url=settings.base_url or GOOGLE_URL,  # said here, not by an environment variable
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
    async with self.translated(), asyncio.timeout(self.settings.timeout_s):
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
    """The question as a line of a batch file holds it: the body of the same request."""
    system = {"systemInstruction": {"parts": [{"text": question.system}]}}
    return {
      "contents": [_dump(self._content(question))],
      **(system if question.system else {}),
      "generationConfig": _dump(self._generation(question)),
    }

  def read_row(self, line: str) -> dict[str, Any]:
    """One line of a file of results; raises Lost."""
    return wire.read_body(line, self._key, _DROPPED)

  def read_reply(self, raw: dict[str, Any]) -> Reply:
    """What a GenerateContentResponse says; raises Lost for anything else."""
    try:
      return _reply(raw)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
      raise Lost(f"this is no answer of Gemini ({error!r}): {str(raw)[:300]}") from None

  @property
  def aio(self) -> Any:
    """The client of google-genai; calls of it stand inside `translated`."""
    return self._client.aio

  @contextlib.asynccontextmanager
  async def translated(self) -> AsyncIterator[None]:
    """Around calls of the API: what goes wrong comes out as Busy, Lost, Refused or UsageError, without the key."""
    # The errors of the libraries hold what the server wrote: none of them is kept as a cause.
    try:
      yield
    except self._genai.errors.APIError as error:
      raise self._failure(error) from None
    except (self._httpx.ConnectError, self._httpx.ConnectTimeout, self._httpx.PoolTimeout) as error:
      raise Busy(self._described(error, "nothing was sent")) from None
    except (TimeoutError, self._httpx.TimeoutException):
      raise Lost(f"no answer within timeout_s={self.settings.timeout_s}") from None
    except self._httpx.HTTPError as error:
      raise Lost(self._described(error, "the connection broke")) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise Lost(self._described(error, "the server's answer has another form")) from None

  def _content(self, question: Question) -> Any:
    types = self._genai.types
    picture = types.Part.from_bytes(data=question.image, mime_type=question.mime_type)
    return types.Content(role="user", parts=[picture, types.Part(text=question.text)])

  def _generation(self, question: Question) -> Any:
    """GenerationConfig of a question."""
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
      response_json_schema=_in_order(question.schema) if structured else None,
    )

  def _failure(self, error: Any) -> Exception:
    """What an error of the API means."""
    details = error.details if isinstance(error.details, dict) else {}
    message = wire.told(f"{error.status}. {error.message}", self._key)
    if error.code == 400 and any(word in str(details) for word in _EVERY_QUESTION):
      return UsageError(f"400: {message}; check the key in the environment ({' or '.join(KEYS)})")
    if error.code == 404:
      message += f" (model {self.settings.model})"
    header = error.response.headers.get("Retry-After") if error.response is not None else None
    now = datetime.datetime.now(datetime.UTC)
    waits = [wire.seconds_to_wait(text, now) for text in (header, _retry_info(details))]
    wait_s = max((wait for wait in waits if wait is not None), default=None)
    return wire.failure(error.code, message, wait_s)

  def _described(self, error: Exception, what: str) -> str:
    return wire.told(f"{what} ({type(error).__name__}: {error})", self._key)


def _reply(raw: Mapping[str, Any]) -> Reply:
  """A body without any of the fields of an answer is none. One that lacks a candidate, or the reason for its end, was
  paid for nevertheless."""
  if not raw.keys() & {"candidates", "promptFeedback", "usageMetadata"}:
    raise KeyError("candidates")
  usage = raw.get("usageMetadata") or {}
  spent = Usage(
    prompt=int(usage.get("promptTokenCount") or 0),
    cached=int(usage.get("cachedContentTokenCount") or 0),
    answer=int(usage.get("candidatesTokenCount") or 0),
    thoughts=int(usage.get("thoughtsTokenCount") or 0),
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


def _in_order(schema: Any) -> Any:
  """The schema with the order of its properties said: a model that concludes before it reasons does not reason."""
  if isinstance(schema, list):
    return [_in_order(item) for item in schema]
  if not isinstance(schema, dict):
    return schema
  ordered = {name: _in_order(value) for name, value in schema.items()}
  if isinstance(properties := schema.get("properties"), dict) and schema.get("type") == "object":
    ordered.setdefault("propertyOrdering", list(properties))
  return ordered


def _retry_info(details: Mapping[str, Any]) -> str | None:
  """Seconds that google.rpc.RetryInfo asks for, such as "7" for its "7s"; None without one."""
  error = details.get("error", details)
  listed = error.get("details") if isinstance(error, dict) else None
  for item in listed if isinstance(listed, list) else []:
    if isinstance(item, dict) and str(item.get("@type", "")).endswith("google.rpc.RetryInfo"):
      return str(item.get("retryDelay", "")).removesuffix("s")
  return None


def _dump(model: Any) -> dict[str, Any]:
  return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _import_genai() -> tuple[Any, Any]:
  """google-genai and its transport, httpx2."""
  try:
    import httpx2
    from google import genai
    from google.genai import errors, types  # noqa: F401  # attributes of genai from here on
  except ImportError as error:
    raise UsageError("asking Gemini needs google-genai; install spatial-vlm[synthesis]") from error
  return genai, httpx2
