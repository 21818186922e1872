"""Files of results: results.json, and a table as Markdown."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from etils import epath

from spatial_vlm.benchmark.limits import Limits
from spatial_vlm.benchmark.row import PENDING, Row, Spread
from spatial_vlm.config import versions
from spatial_vlm.text import escaped, markdown_table, percent

RESULTS, TABLE = "results.json", "results.md"


class Results:
  """The results of a workdir: those of earlier starts, and rows that replace them."""

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    self._running: tuple[str, str] | None = None
    self.starts, self.rows = _read(workdir / RESULTS)

  def start(self, model: str, dtype: str, limits: Limits) -> None:
    """Records date, hardware, versions and limits of this start."""
    self.starts.append(description() | {"model": model, "dtype": dtype} | limits._asdict())
    self._write()

  def add(self, row: Row | None, running: tuple[str, str] | None) -> None:
    """Adds a row, in the place of an earlier one of the same key, and writes the files.

    Args:
      row: None where a measurement begins or ends.
      running: model and name of the measurement in progress. Until it ends, the files say that it did not finish.
    """
    replaced = row.key if row else running
    self.rows = [
      other
      for other in self.rows
      if other.key != replaced and not (other.is_pending and other.key == self._running)
    ]
    self._running = running
    if row:
      self.rows.append(row)
    if running:
      self.rows.append(Row(*running, error=PENDING))
    self._write()

  def _write(self) -> None:
    content = {"starts": self.starts, "rows": [dataclasses.asdict(row) for row in self.rows]}
    (self._workdir / RESULTS).write_text(json.dumps(content, indent=2) + "\n")
    (self._workdir / TABLE).write_text(report(self.starts, self.rows) + "\n")


def _read(file: epath.Path) -> tuple[list[dict[str, Any]], list[Row]]:
  if not file.exists():
    return [], []
  content = json.loads(file.read_text())
  return content["starts"], [Row.from_json(fields) for fields in content["rows"]]


def description() -> dict[str, Any]:
  """Returns date, hardware and versions."""
  devices = jax.devices()
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "devices": f"{len(devices)} × {devices[0].device_kind}",
    "processor": f"{_processor()}, {os.cpu_count()} cores",
    "versions": versions() | _torch_version(),
  }


def _torch_version() -> dict[str, str]:
  try:
    return {"torch": importlib.metadata.version("torch")}
  except importlib.metadata.PackageNotFoundError:
    return {}


def _processor() -> str:
  """Returns the name of the processor."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()


HEADER = (
  *("model", "measurement", "ms", "tokens/s", "TFLOP/s", "of peak", "of limit"),
  *("compile s", "cached s", "GiB", "× transformers"),
)


def report(starts: Sequence[dict[str, Any]], rows: Iterable[Row]) -> str:
  """Returns the starts, the table and the notes as Markdown."""
  rows = list(rows)
  timed = [row for row in rows if row.seconds]
  parts = [_start_line(start) for start in starts]
  if timed:
    parts.append(markdown_table(HEADER, map(cells, timed), text_columns=2))
  notes = [
    f"- {row.model}, {row.name}: {escaped(row.error and f'ERROR: {row.error}' or row.note)}"
    for row in rows
    if row.error or row.note
  ]
  parts.append("\n".join(notes))
  return "\n\n".join(part for part in parts if part)


def _start_line(start: dict[str, Any]) -> str:
  of = start["versions"]
  names = " · ".join(
    f"{name} {of[name]}" for name in ("jax", "transformers", "torch") if name in of
  )
  return (
    f"{start['date']}, {start['model']}, {start['dtype']}: {start['devices']}; {start['processor']}; {names}. Limits: "
    f"{start['flops_per_s'] / 1e12:.3g} TFLOP/s, {start['bytes_per_s'] / 1e9:.4g} GB/s."
  )


def cells(row: Row) -> tuple[str, ...]:
  """Returns a line of the table."""
  assert row.seconds
  rate = row.flops / row.seconds.median / 1e12
  return (
    row.model,
    row.name,
    spread(row.seconds, 1e3),
    f"{row.tokens / row.seconds.median:,.0f}" if row.tokens else "–",
    f"{rate:.3g}" if row.flops else "–",
    percent(row.of_peak),
    percent(row.of_limit),
    f"{row.compile_s:.1f}" if row.compile_s else "–",
    f"{row.cached_compile_s:.1f}" if row.cached_compile_s else "–",
    f"{row.peak_bytes / 2**30:.2f}" if row.peak_bytes else "–",
    spread(row.ratio) if row.ratio else "–",
  )


def spread(values: Spread, scale: float = 1.0) -> str:
  """Returns the median with the extremes.

  >>> spread(Spread(0.0123, 0.012, 0.02), 1e3)
  '12.3 (12–20)'
  """
  median, low, high = (
    f"{value * scale:.3g}" if value * scale < 100 else f"{value * scale:.0f}" for value in values
  )
  return f"{median} ({low}–{high})"
