"""The table of Gemini models, and what is read from it on which day."""

import datetime
import json

import pytest

from spatial_vlm import config
from spatial_vlm.config import UsageError
from spatial_vlm.synthesis.setup import read_prices
from spatial_vlm.synthesis.teachers.gemini import check
from spatial_vlm.synthesis.teachers.gemini_models import (
  TABLE,
  THINKING_LEVELS,
  check_end,
  describe_price_changes,
  find_model,
  prices_on,
)

PATHS = ["data.records=r", "data.images=i", "evaluation=e"]
ENTRIES = json.loads(TABLE.read_text())["models"]


def day(text):
  return datetime.date.fromisoformat(text)


def settings(*changes):
  from spatial_vlm.synthesis.teacher_table import _gemini_settings

  return _gemini_settings(config.load("configs/synthesize.py:8b", [*PATHS, *changes]))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_every_model_has_parameters_prices_and_dated_sources(entry):
  model = find_model(entry["name"])
  assert (model.budget is None) != (not model.levels) and {*model.levels} <= {*THINKING_LEVELS}
  assert model.prices and model.prices[-1].until is None
  assert all(period.until for period in model.prices[:-1])
  assert all(
    0 < p.input_usd < p.output_usd and (p.cached_usd or 0) < p.input_usd for p in model.prices
  )
  assert (model.ends is None) == (not model.replaced_by)
  assert not model.replaced_by or find_model(model.replaced_by).prices
  assert entry["sources"] and all(
    source["says"] and source["url"].startswith("https://") and source["read"] >= "2026"
    for source in entry["sources"]
  )


def test_the_default_model_lives_and_takes_the_default_settings():
  preset = config.load("configs/synthesize.py:8b", PATHS)
  model = find_model(preset.model)
  assert model.name == preset.model and model.ends is None and preset.temperature is None
  check(settings())


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (["temperature=0.7"], "does not use it; set temperature=none"),
    (
      ["thinking_level=none", "thinking_budget=2048"],
      "give thinking_level, one of low, medium, high",
    ),
    (["thinking_level=minimal"], "choose one of low, medium, high$"),
    (["model=gemini-4-neon", "temperature=1.0"], "gemini-4-neon does not use it"),
    (["model=gemini-2.5-pro"], "give thinking_budget"),
    (["model=gemini-2.5-pro", "thinking_level=none", "thinking_budget=40000"], "at most 32,768"),
    (["model=gemini-4-hydrogen", "thinking_level=minimal"], "low, medium, high, xhigh"),
    (
      ["model=gemini-3-unlisted", "thinking_level=none", "thinking_budget=1"],
      "give thinking_level",
    ),
  ],
)
def test_parameters_that_a_model_does_not_take_are_refused(changes, says):
  with pytest.raises(UsageError, match=says):
    check(settings(*changes))


def test_parameters_that_models_take_pass():
  check(
    settings(
      "model=gemini-2.5-pro", "thinking_level=none", "thinking_budget=2048", "temperature=0.7"
    )
  )
  check(settings("model=gemini-4-neon", "thinking_level=xhigh"))
  check(settings("model=gemini-3.1-pro-preview", "temperature=1.0"))
  check(settings("model=an-unknown-model", "temperature=1.0", "thinking_level=minimal"))


@pytest.mark.parametrize(
  ("today", "output_usd"),
  [("2026-11-26", 3.75), ("2026-12-24", 3.75), ("2026-12-25", 7.5), ("2027-03-01", 7.5)],
)
def test_a_run_is_budgeted_at_the_highest_price_of_a_week(today, output_usd):
  assert prices_on(find_model("gemini-3.8-flash"), day(today)).output_usd == output_usd


def test_announced_prices_are_told_until_they_hold():
  model = find_model("models/gemini-3.8-flash")
  text = "gemini-3.8-flash changes its prices: after 2026-12-31 1.5 input, 7.5 output"
  assert describe_price_changes(model, day("2026-11-26")).startswith(text)
  assert describe_price_changes(model, day("2027-01-01")) == ""
  assert describe_price_changes(find_model("gemini-2.5-pro"), day("2026-11-26")) == ""


def test_a_model_that_ends_soon_is_announced_and_one_that_has_ended_is_refused():
  model = find_model("gemini-2.5-pro")
  assert check_end(model, day("2026-07-01")) == ""
  assert check_end(model, day("2026-11-30")).startswith(
    "gemini-2.5-pro ends on 2026-12-01; gemini-3.8"
  )
  with pytest.raises(
    UsageError, match="ended on 2026-12-01; .*set model=gemini-3.8-flash, or --offl"
  ):
    check_end(model, day("2026-12-01"))
  assert check_end(find_model("gemini-3.8-flash"), day("2030-01-01")) == ""


def test_prices_come_from_the_table_unless_they_are_given():
  def prices(*changes):
    return read_prices(
      config.load("configs/synthesize.py:8b", [*PATHS, *changes]), day("2026-11-26")
    )

  default = prices()
  assert (default.input_usd, default.cached_usd, default.output_usd) == (0.75, 0.075, 3.75)
  unconfirmed = prices("model=gemini-2.5-pro")
  assert (unconfirmed.input_usd, unconfirmed.cached_usd) == (1.25, 1.25)
  assert prices("prices.output_usd=2.0").output_usd == 2.0
  for unknown in ("gemini-9-flash", "gemini-3-unlisted"):
    with pytest.raises(
      UsageError, match=f"no prices of '{unknown}'; give prices.input_usd, prices.c"
    ):
      prices(f"model={unknown}")
  given = ("prices.input_usd=1", "prices.cached_usd=1", "prices.output_usd=2")
  assert prices("model=gemini-9-flash", *given).output_usd == 2
