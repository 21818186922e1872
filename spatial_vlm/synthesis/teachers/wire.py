"""What teachers behind HTTP share: addresses, secrets, bodies, and what a status means for the next attempt."""

import contextlib
import datetime
import email.utils
import ipaddress
import json
import os
import re
import urllib.parse
from collections.abc import Collection
from typing import Any

from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.teacher import Busy, Lost, Refused


def is_local(url: str) -> bool:
  """Whether the address is this machine's own: no proxy stands before it, and a key may travel unencrypted."""
  host = urllib.parse.urlsplit(url).hostname or ""
  with contextlib.suppress(ValueError):
    return ipaddress.ip_address(host).is_loopback
  return host == "localhost"


def check_url(url: str) -> None:
  """Raises UsageError for a base_url that is no address, or to which a key would travel unencrypted."""
  try:
    parts = urllib.parse.urlsplit(url)
    _ = parts.port
  except ValueError as error:
    raise UsageError(f"base_url is no address ({error})") from None
  if parts.scheme not in ("http", "https") or not parts.hostname:
    raise UsageError(f"base_url is {url!r}; give an address such as https://example.org/v1")
  if parts.username or parts.password or parts.query:
    raise UsageError("base_url holds a password or a query; give keys in the environment")
  if parts.scheme == "http" and not is_local(url):
    raise UsageError(
      f"base_url is {url!r}: over http:// to another machine the key could be read on its way; give https://"
    )


def check_sampling(timeout_s: float, max_output_tokens: int, temperature: float) -> None:
  """Raises UsageError for settings with which no teacher can answer."""
  if timeout_s <= 0 or max_output_tokens < 1 or not 0 <= temperature <= 2:
    raise UsageError(
      f"timeout_s is {timeout_s}, max_output_tokens is {max_output_tokens}, temperature is {temperature}; give a time "
      "above 0, at least 1 token and a temperature from 0 to 2"
    )


def read_key(names: Collection[str]) -> str:
  """The first of these environment variables that is set, or "".

  Raises UsageError for one that no header can carry: libraries would repeat it in their errors.
  """
  for name in names:
    if key := os.environ.get(name, "").strip():
      if not re.fullmatch(r"[!-~]+", key):
        raise UsageError(f"{name} holds blanks or characters other than ASCII; copy the key anew")
      return key
  return ""


_SECRET_LENGTH = 8
"""Shorter ones, such as "none" for a server that asks for no key, are words that any answer may hold."""


def without_key(text: str, key: str) -> str:
  """Servers repeat a wrong key in their messages."""
  return text.replace(key, "[key]") if len(key) >= _SECRET_LENGTH else text


def told(message: str, key: str) -> str:
  """What a server says of an error, fit for logs: without the key, and not whole pages."""
  return " ".join(without_key(message, key).split())[:_MESSAGE_LENGTH]


_MESSAGE_LENGTH = 500


def read_body(body: str, key: str, dropped: Collection[str] = ()) -> dict[str, Any]:
  """The JSON object that was received, without the key and without the fields named in `dropped`; raises Lost."""
  try:
    value = json.loads(
      without_key(body, key),
      object_hook=lambda fields: {k: v for k, v in fields.items() if k not in dropped},
    )
  except (ValueError, RecursionError) as error:
    raise Lost(f"the body is no JSON ({error}); it has {len(body)} characters") from None
  if not isinstance(value, dict):
    raise Lost(f"the body is a JSON {type(value).__name__}, not an object")
  return value


def seconds_to_wait(retry_after: str | None, now: datetime.datetime) -> float | None:
  """What a Retry-After header asks for: seconds, or the time until a date; None where it says neither."""
  with contextlib.suppress(TypeError, ValueError):
    seconds = float(retry_after or "")
    return seconds if 0 <= seconds < float("inf") else None
  with contextlib.suppress(TypeError, ValueError):
    date = email.utils.parsedate_to_datetime(retry_after or "")
    return max((date - now).total_seconds(), 0.0)
  return None


class NotFound(UsageError):
  """What was asked for is not there: a model, an address, or what a server has kept for its time."""


def failure(
  status: int, message: str, retry_after_s: float | None
) -> Busy | Lost | Refused | UsageError:
  """What an HTTP status other than 200 means for the one who asked; `message` holds no secret.

  408, 409, 429, 499 and 5xx pass: Busy. 3xx, 401 to 404 would meet every other question too: UsageError. What is
  left of 4xx is about this question: Refused. A 2xx without content is Lost.
  """
  text = f"{status}: {message}"
  if status in (408, 409, 429, 499) or status >= 500:
    return Busy(text, retry_after_s)
  if status == 404:
    return NotFound(f"{text}; {_REMEDIES[status]}")
  if 401 <= status < 404 or 300 <= status < 400:
    return UsageError(f"{text}; {_REMEDIES.get(status, 'check base_url')}")
  return Lost(text) if status < 300 else Refused(text)


_REMEDIES = {
  401: "check the key in the environment",
  402: "the account cannot pay",
  403: "check the key in the environment, and what it is allowed to do",
  404: "check model, base_url and api_version",
}
