"""Fields of a JSON object that a client sent: each reader returns a checked value or raises `ApiError`."""

import json
from collections.abc import Sequence
from typing import Any

from spatial_vlm.serving.api_error import invalid

_SHOWN_CHARACTERS = 60


def shown(value: Any) -> str:
  """Returns a value as a message shows it, shortened."""
  if isinstance(value, list | dict):
    return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
  text = "missing" if value is None else json.dumps(value)
  return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def string(data: dict[str, Any], name: str, where: str = "") -> str:
  """Returns a required string."""
  value = data.get(name)
  if not isinstance(value, str):
    raise invalid(f"{where or name} is {shown(value)}; give a string", where or name)
  return value


def mapping(data: dict[str, Any], name: str, where: str = "") -> dict[str, Any]:
  """Returns an object; {} where there is none."""
  value = data.get(name)
  if value is not None and not isinstance(value, dict):
    raise invalid(f"{where or name} is {shown(value)}; give an object", where or name)
  return value or {}


def boolean(data: dict[str, Any], name: str, where: str = "") -> bool:
  """Returns true or false; false where there is none."""
  value = data.get(name)
  if value is not None and not isinstance(value, bool):
    raise invalid(f"{where or name} is {shown(value)}; give true or false", where or name)
  return bool(value)


def choice(data: dict[str, Any], name: str, allowed: Sequence[str], where: str = "") -> str | None:
  """Returns one of the allowed strings; None where there is none."""
  value = data.get(name)
  if value is not None and value not in allowed:
    raise invalid(
      f"{where or name} is {shown(value)}; give one of {', '.join(allowed)}", where or name
    )
  return value


def integer(data: dict[str, Any], name: str, default: int, bounds: tuple[int, int]) -> int:
  """Returns an integer within the bounds."""
  value = default if data.get(name) is None else data[name]
  if type(value) is not int or not bounds[0] <= value <= bounds[1]:
    raise invalid(
      f"{name} is {shown(value)}; give an integer from {bounds[0]} to {bounds[1]}", name
    )
  return value


def number(data: dict[str, Any], name: str, default: float, bounds: tuple[float, float]) -> float:
  """Returns a number within the bounds."""
  value = default if data.get(name) is None else data[name]
  if type(value) not in (int, float) or not bounds[0] <= value <= bounds[1]:
    raise invalid(
      f"{name} is {shown(value)}; give a number from {bounds[0]:g} to {bounds[1]:g}", name
    )
  return float(value)
