"""A plan as tables, as JSON, and as a one-line verdict."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.compiled import ProgramCost, ProgramKind
from spatial_vlm.planning.search import Trial
from spatial_vlm.text import markdown_table


def tables(cost: ProgramCost, chip: Chip) -> str:
  """Returns a program's memory, collectives and time bounds as Markdown, then the verdict."""
  parts = [f"## {cost.name}", memory_table(cost, chip)]
  if cost.collectives:
    parts.append(collectives_table(cost))
  if cost.seconds:
    parts.append(time_table(cost, chip))
  return "\n\n".join([*parts, f"**{verdict(cost, chip)}**"])


def memory_table(cost: ProgramCost, chip: Chip) -> str:
  """Returns the parts of the peak memory of one chip."""
  rest = cost.peak_bytes - sum(cost.resident_bytes.values()) - cost.kv_cache_bytes
  rows = [(name, _gib(size)) for name, size in cost.resident_bytes.items()]
  if cost.kv_cache_bytes:
    rows.append(("keys and values (estimate)", _gib(cost.kv_cache_bytes)))
  rows.append(("activations and other temporaries", _gib(max(rest, 0))))
  rows.append(("peak", f"{_gib(cost.peak_bytes)} of {_gib(chip.hbm_bytes)}"))
  return markdown_table(("memory of a chip", "GiB"), rows)


def collectives_table(cost: ProgramCost) -> str:
  """Returns the bytes that one chip sends, by mesh axes and kind of collective."""
  rows = [
    (axes, kind, f"{size / 1e9:.3f}")
    for axes, kinds in sorted(cost.collectives.items())
    for kind, size in sorted(kinds.items())
  ]
  total = ("total", "", f"{cost.collective_bytes / 1e9:.3f}")
  return markdown_table(("mesh axes", "collective", "GB sent by a chip"), [*rows, total], 2)


def time_table(cost: ProgramCost, chip: Chip) -> str:
  """Returns the lower bound of the time by resource, the bounds of the total, and the MFU of a computation."""
  rows = [
    (
      "compute",
      f"{cost.flops / 1e12:.3f} TFLOP",
      f"{chip.peak_flops / 1e12:.0f} TFLOP/s",
      _ms(cost.seconds["compute"]),
    ),
    (
      "memory",
      f"{cost.memory_bytes / 1e9:.1f} GB",
      f"{chip.hbm_bytes_per_s / 1e9:.0f} GB/s",
      _ms(cost.seconds["memory"]),
    ),
    *(
      (name, "", "", _ms(seconds))
      for name, seconds in cost.seconds.items()
      if name not in ("compute", "memory")
    ),
    ("time with full overlap", "", "", _ms(cost.fastest_s)),
    ("time without overlap", "", "", _ms(cost.slowest_s)),
  ]
  table = markdown_table(("roofline of a chip", "amount", "peak rate", "ms"), rows)
  if cost.kind == ProgramKind.OTHER:  # they move arrays and compute next to nothing
    return table
  low, high = (cost.mfu(s, chip.peak_flops) for s in (cost.slowest_s, cost.fastest_s))
  return (
    f"{table}\n\nMFU {low:.0%} to {high:.0%}: estimates at peak rates, which no program reaches."
  )


def verdict(cost: ProgramCost, chip: Chip) -> str:
  """Returns one line: whether the program fits."""
  if not cost.fits:
    sizes = f"{_gib(cost.peak_bytes)} GiB of the {_gib(chip.hbm_bytes)} GiB"
    return f"{cost.name} does not fit: it needs {sizes} of a {chip.name}."
  spare = chip.hbm_bytes - cost.peak_bytes
  return f"{cost.name} fits, with {_gib(spare)} GiB of {_gib(chip.hbm_bytes)} to spare."


def as_json(
  costs: Sequence[ProgramCost], trials: Sequence[Trial], chip: Chip, **more: Any
) -> dict[str, Any]:
  """Returns all figures, in bytes, operations and seconds; `trials` are those of a search, ranked."""
  return {
    **more,
    "chip": dataclasses.asdict(chip),
    "ranking": [
      trial.candidate.settings()
      | {name: getattr(trial, name) for name in ("fits", "peak_bytes", "fastest_s", "slowest_s")}
      for trial in trials
    ],
    "programs": [
      dataclasses.asdict(cost)
      | {
        "collective_bytes": cost.collective_bytes,
        "fastest_s": cost.fastest_s,
        "slowest_s": cost.slowest_s,
        "mfu": [cost.mfu(s, chip.peak_flops) for s in (cost.slowest_s, cost.fastest_s)],
      }
      for cost in costs
    ],
  }


def ranking_table(trials: Sequence[Trial]) -> str:
  """Returns ranked trials as a table: their settings, memory and time."""
  rows = [
    (
      str(place),
      *(str(setting) for setting in trial.candidate.settings().values()),
      _gib(trial.peak_bytes),
      f"{trial.fastest_s * 1e3:.0f}–{trial.slowest_s * 1e3:.0f}" if trial.fits else "–",
      "fits" if trial.fits else "does not fit",
    )
    for place, trial in enumerate(trials, 1)
  ]
  names = [name.removeprefix("mesh.") for name in trials[0].candidate.settings()]
  return markdown_table(("rank", *names, "GiB", "ms per step", ""), rows, text_columns=0)


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:.1f}"
