"""The table of Gemini models (`assets/gemini_models.json`): their parameters, dated prices and ends.

To add a model or a price, edit the table and name the source and its date.
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Sequence
from pathlib import Path

from spatial_vlm.config import UsageError

TABLE = Path(__file__).parents[2] / "assets" / "gemini_models.json"
THINKING_LEVELS = ("minimal", "low", "medium", "high", "xhigh")
_RUN_DAYS = 7
"""A run that starts today may last this long; it is budgeted at the highest price of these days."""
_WARNING_DAYS = 60


@dataclasses.dataclass(frozen=True)
class PricePeriod:
  """US dollars per million tokens, up to the day `until` (None: without an announced end)."""

  until: datetime.date | None
  input_usd: float
  cached_usd: float | None
  """None if no source confirms it."""
  output_usd: float


@dataclasses.dataclass(frozen=True)
class GeminiModel:
  """A listed model, or the family of an unlisted one, whose prices are empty."""

  name: str
  budget: tuple[int, int] | None
  """Fewest and most thinking tokens; None for a model with thinking levels."""
  levels: tuple[str, ...]
  """Thinking levels; empty for a model with a thinking budget."""
  takes_temperature: bool
  prices: tuple[PricePeriod, ...]
  """In the order of their dates."""
  ends: datetime.date | None
  replaced_by: str


def find_model(name: str) -> GeminiModel | None:
  """Returns the model of this name, its family if it is not listed, None if that is unknown too."""
  name = name.removeprefix("models/")
  models, families = _read_table()
  if name in models:
    return models[name]
  return next((family for prefix, family in families.items() if name.startswith(prefix)), None)


def prices_on(model: GeminiModel, day: datetime.date) -> PricePeriod | None:
  """Returns the highest prices in force within a week from `day`; None if the table has none."""
  last = day + datetime.timedelta(days=_RUN_DAYS)
  starts = [datetime.date.min, *(period.until for period in model.prices[:-1] if period.until)]
  in_force = [
    period
    for start, period in zip(starts, model.prices, strict=False)
    if start < last and (period.until is None or period.until >= day)
  ]
  return max(in_force, key=lambda period: period.output_usd, default=None)


def describe_price_changes(model: GeminiModel, day: datetime.date) -> str:
  """Returns the announced changes of the prices as a sentence; "" without any."""
  changes = [
    f"after {before.until} {period.input_usd:g} input, {period.output_usd:g} output"
    for before, period in zip(model.prices, model.prices[1:], strict=False)
    if before.until and before.until >= day
  ]
  return (
    f"{model.name} changes its prices: {'; '.join(changes)} (USD per million tokens)"
    if changes
    else ""
  )


def check_end(model: GeminiModel, day: datetime.date) -> str:
  """Returns a warning if the model ends soon, else ""; raises UsageError if it has ended."""
  if model.ends is None or (model.ends - day).days > _WARNING_DAYS:
    return ""
  text = f"{model.name} {'ended' if day >= model.ends else 'ends'} on {model.ends}"
  remedy = (
    f"{model.replaced_by} then answers in its place, at other prices; set model={model.replaced_by}"
  )
  if day >= model.ends:
    raise UsageError(f"{text}; {remedy}, or --offline to read stored answers")
  return f"{text}; {remedy}"


@functools.cache
def _read_table() -> tuple[dict[str, GeminiModel], dict[str, GeminiModel]]:
  """Returns the models by name and the families by prefix."""
  table = json.loads(TABLE.read_text())
  models = {
    entry["name"]: GeminiModel(
      entry["name"],
      tuple(entry["budget"]) if "budget" in entry else None,
      tuple(entry.get("levels", ())),
      entry["temperature"],
      _periods(entry["prices"]),
      _date(entry["ends"]),
      entry.get("replaced_by", ""),
    )
    for entry in table["models"]
  }
  families = {
    entry["prefix"]: GeminiModel(
      entry["prefix"],
      (0, 2**31) if entry["thinking"] == "budget" else None,
      THINKING_LEVELS if entry["thinking"] == "level" else (),
      *(True, (), None, ""),
    )
    for entry in table["families"]
  }
  return models, families


def _periods(entries: Sequence[dict]) -> tuple[PricePeriod, ...]:
  return tuple(PricePeriod(**{**entry, "until": _date(entry["until"])}) for entry in entries)


def _date(text: str | None) -> datetime.date | None:
  return datetime.date.fromisoformat(text) if text else None
