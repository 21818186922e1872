"""Shared HTTP code of the teachers: addresses, secrets, response bodies and the error of each status."""

import contextlib
import datetime
import email.utils
import functools
import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Collection, Mapping
from typing import Any

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.errors import BusyError, LostError, NotFoundError, RefusedError
from spatial_vlm.text import short_line, without_surrogates


def is_local(url: str) -> bool:
  """Tells whether the address is on this machine: no proxy is used, and a key may be sent unencrypted."""
  host = urllib.parse.urlsplit(url).hostname or ""
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == "localhost"


def check_url(url: str) -> None:
  """Raises UsageError for a base_url that is invalid or to which the key would be sent unencrypted."""
  try:
    parts = urllib.parse.urlsplit(url)
    _ = parts.port
  except ValueError as error:
    raise UsageError(f"base_url is no address ({error})") from None
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise UsageError(f"base_url is {url!r}; give an address such as https://example.org/v1")
  if parts.username or parts.password or parts.query:
    raise UsageError("base_url contains a password or a query; give keys in the environment")
  if parts.scheme == "http" and not is_local(url):
    raise UsageError(
      f"base_url is {url!r}, which would send the key unencrypted to another machine; give https://"
    )


def check_sampling(timeout_s: float, max_output_tokens: int, temperature: float | None) -> None:
  """Raises UsageError for sampling settings that no teacher accepts; a temperature of None is left out."""
  if timeout_s <= 0 or max_output_tokens < 1 or not 0 <= (temperature or 0) <= 2:
    raise UsageError(
      f"timeout_s is {timeout_s}, max_output_tokens is {max_output_tokens}, temperature is {temperature}; give a "
      "timeout above 0, at least 1 token and a temperature from 0 to 2"
    )


def read_key(names: Collection[str]) -> str:
  """Returns the value of the first of these environment variables that is set, or "".

  Raises UsageError for a value that no HTTP header can carry, because libraries would repeat it in their errors.
  """
  for name in names:
    if key := os.environ.get(name, "").strip():
      if not re.fullmatch(r"[!-~]+", key):
        raise UsageError(f"{name} contains spaces or non-ASCII characters; copy the key again")
      return key
  return ""


_MIN_SECRET_LENGTH = 8
"""A shorter key, such as "none" for a server without keys, is a word that any answer may contain."""


def redact_key(text: str, key: str) -> str:
  """Replaces the key by "[key]", in every spelling, because servers repeat a wrong key in their messages."""
  return _spellings(key).sub("[key]", text) if len(key) >= _MIN_SECRET_LENGTH else text


@functools.lru_cache(maxsize=8)
def _spellings(key: str) -> re.Pattern[str]:
  """Matches the key plain, with backslashes, in JSON's \\u escapes and in an address's % escapes, even mixed."""
  return re.compile(
    "".join(rf"(?:\\*{re.escape(c)}|(?i:\\+u{ord(c):04x}|%{ord(c):02x}))" for c in key)
  )


def redact_message(message: str, key: str) -> str:
  """Returns a server's error message for logs: one line, without the key, at most 500 characters."""
  return short_line(redact_key(message, key), _MAX_MESSAGE_LENGTH)


_MAX_MESSAGE_LENGTH = 500


def read_body(body: str, key: str, dropped: Collection[str] = ()) -> dict[str, Any]:
  """Parses a JSON object without the key and the fields in `dropped`; raises LostError for anything else.

  Half surrogate pairs, which are no Unicode and which no file could hold, become U+FFFD.
  """
  try:
    value = _cleaned(json.loads(body), key, dropped)
  except (ValueError, RecursionError) as error:
    reason = redact_message(str(error), key)
    raise LostError(f"the body is no JSON ({reason}); it has {len(body)} characters") from None
  if not isinstance(value, dict):
    raise LostError(f"the body is a JSON {type(value).__name__}, not an object")
  return value


def _cleaned(value: Any, key: str, dropped: Collection[str]) -> Any:
  """Redacts decoded strings, since a key may be escaped in the body."""
  if isinstance(value, dict):
    return {
      _cleaned(name, key, dropped): _cleaned(item, key, dropped)
      for name, item in value.items()
      if name not in dropped
    }
  if isinstance(value, list):
    return [_cleaned(item, key, dropped) for item in value]
  return redact_key(without_surrogates(value), key) if isinstance(value, str) else value


_MOST_TOKENS = 10**9


def token_count(usage: Mapping[str, Any], name: str) -> int:
  """Returns a number of tokens, 0 for an absent one; ValueError for what no reply can cost, such as 1e999 or −1."""
  value = usage.get(name) or 0
  if not isinstance(value, int | float) or not 0 <= value <= _MOST_TOKENS:
    raise ValueError(f"{name} is {short_line(repr(value), 40)}, which is no number of tokens")
  return int(value)


def seconds_to_wait(retry_after: str | None, now: datetime.datetime) -> float | None:
  """Returns the delay of a Retry-After header (seconds or a date); None for anything else."""
  with contextlib.suppress(TypeError, ValueError):
    seconds = float(retry_after or "")
    return seconds if 0 <= seconds < float("inf") else None
  with contextlib.suppress(TypeError, ValueError):
    date = email.utils.parsedate_to_datetime(retry_after or "")
    return max((date - now).total_seconds(), 0.0)
  return None


def status_error(
  status: int, message: str, retry_after_s: float | None
) -> BusyError | LostError | RefusedError | UsageError:
  """Returns the error of an HTTP status other than 200; `message` must contain no secret.

  408, 409, 429, 499 and 5xx are temporary: BusyError. 3xx and 401 to 404 would fail every other question too:
  UsageError (NotFoundError for 404). Any other 4xx concerns this question alone: RefusedError. A 2xx without content
  is a LostError.
  """
  text = f"{status}: {message}"
  if status in (408, 409, 429, 499) or status >= 500:
    return BusyError(text, retry_after_s)
  if status == 404:
    return NotFoundError(f"{text}; {_REMEDIES[status]}")
  if 401 <= status < 404 or 300 <= status < 400:
    return UsageError(f"{text}; {_REMEDIES.get(status, 'check base_url')}")
  return LostError(text) if status < 300 else RefusedError(text)


_REMEDIES = {
  401: "check the key in the environment",
  402: "the account cannot pay",
  403: "check the key in the environment and its permissions",
  404: "check model, base_url and api_version",
}
