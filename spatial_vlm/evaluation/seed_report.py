"""Finished demos that differ in their seed, joined: mean and range of every figure."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.jsonl import read_object
from spatial_vlm.text import escaped, markdown_table

Row = Mapping[str, Any]
"""A row of `results.json`."""
HARMLESS = ("scenes_shown", "stages_at_once")
"""Settings of a demo that change no figure, or its last digits, as other processors do."""


class FinishedDemo(NamedTuple):
  """The results of one finished `demo`."""

  folder: epath.Path
  settings: Mapping[str, Any]
  """Leaves of its config."""
  rows: Mapping[str, Row]
  """Method → row, in the order of the table."""


class Column(NamedTuple):
  """A figure of the table."""

  title: str
  leaf: str
  """Its name in a row of `results.json`."""
  text: Callable[[float], str]


COLUMNS = (
  Column("accuracy, %", "accuracy", lambda value: f"{100 * value:.1f}"),
  Column("generated tokens", "generated_tokens_mean", lambda value: f"{value:.1f}"),
  Column("total tokens", "total_tokens_mean", lambda value: f"{value:.1f}"),
  Column("parse rate, %", "parse_rate", lambda value: f"{100 * value:.1f}"),
  Column("box IoU", "box_iou", lambda value: f"{value:.2f}"),
)


def read_demos(given: Sequence[str]) -> list[FinishedDemo]:
  """Returns the finished demos of workdirs; the last name of a path may hold "*".

  Raises:
    UsageError: one is no finished demo, two have one seed, or they differ in more than the seed.
  """
  demos = [_read_demo(folder) for text in given for folder in _folders(text)]
  if not demos:
    raise UsageError(f"demos is {given}, which are no folders; give workdirs of `demo`")
  first = demos[0]
  for number, demo in enumerate(demos):
    if same := [d for d in demos[:number] if d.settings.get("seed") == demo.settings.get("seed")]:
      raise UsageError(
        f"{same[0].folder} and {demo.folder} have the same seed, {demo.settings.get('seed')}; give demos that differ "
        "in --config.seed"
      )
    names = (first.settings.keys() | demo.settings.keys()) - {"seed", *HARMLESS}
    if others := sorted(n for n in names if first.settings.get(n) != demo.settings.get(n)):
      raise UsageError(
        f"{first.folder} and {demo.folder} differ in {', '.join(others)}; give demos that differ in the seed alone"
      )
  return demos


def _folders(text: str) -> list[epath.Path]:
  path = epath.Path(text).expanduser()
  if "*" not in path.name:
    return [path]
  return sorted(p for p in path.parent.glob(path.name) if (p / "results.json").exists())


def _read_demo(folder: epath.Path) -> FinishedDemo:
  try:
    settings = dict(read_object(folder / "config.json")["config"])
    rows = read_object(folder / "results.json")["rows"]
    return FinishedDemo(folder, settings, {row["method"]: _checked(row) for row in rows})
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UsageError(
      f"{folder} holds no finished demo ({error}); give a workdir in which `demo` ended"
    ) from error


def _checked(row: Row) -> Row:
  """Returns a row; raises ValueError for a method that is no name, and for a figure that is no number."""
  if not isinstance(row["method"], str):
    raise ValueError(f"method is {row['method']!r}")
  for column in COLUMNS:
    figure = row.get(column.leaf)
    if figure is not None and not (type(figure) in (int, float) and math.isfinite(figure)):
      raise ValueError(f"{column.leaf} is {figure!r}")
  return row


def joined_rows(demos: Sequence[FinishedDemo]) -> list[dict[str, Any]]:
  """Returns, for each method, mean, least and greatest value of every figure; None where a demo lacks it."""
  return [
    {"method": method}
    | {c.leaf: _spread([d.rows[method].get(c.leaf) for d in demos]) for c in COLUMNS}
    for method in demos[0].rows
    if all(method in demo.rows for demo in demos)
  ]


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
  known = [value for value in values if value is not None]
  if len(known) < len(values):
    return None
  return {"mean": mean(known), "min": min(known), "max": max(known)}


def seed_table(demos: Sequence[FinishedDemo]) -> str:
  """Returns the Markdown table: mean (least–greatest) of the demos."""

  def cell(column: Column, spread: Mapping[str, float] | None) -> str:
    if spread is None:
      return "–"
    average, low, high = (column.text(spread[name]) for name in ("mean", "min", "max"))
    return f"{average} ({low}–{high})"

  return markdown_table(
    ["method", *(column.title for column in COLUMNS)],
    [
      [escaped(row["method"]), *(cell(column, row[column.leaf]) for column in COLUMNS)]
      for row in joined_rows(demos)
    ],
  )


def seed_report(demos: Sequence[FinishedDemo], provenance: Mapping[str, str]) -> str:
  """Returns the Markdown report of several demos."""
  seeds = ", ".join(str(demo.settings.get("seed")) for demo in demos)
  sections = [
    "# The demo with several seeds",
    f"Mean (least–greatest) of {len(demos)} demos, with the seeds {seeds}. A seed decides the scenes, the order of the "
    "data and every sample.",
    seed_table(demos),
    "\n".join(f"- {escaped(what)}: {escaped(how)}" for what, how in provenance.items()),
  ]
  return "\n\n".join(sections) + "\n"
