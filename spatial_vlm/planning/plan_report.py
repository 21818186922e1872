"""What programs need of a chip, as tables, as JSON, and as a verdict with what to change."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.compiled import Needs
from spatial_vlm.planning.search import Ranked
from spatial_vlm.text import markdown_table


def tables(needs: Needs, chip: Chip) -> str:
  """Memory of a chip, its exchanges with others, and the bounds on its time."""
  parts = [f"## {needs.program}", memory_table(needs, chip)]
  if needs.collectives:
    parts.append(network_table(needs))
  if needs.seconds:
    parts.append(time_table(needs, chip))
  return "\n\n".join([*parts, f"**{verdict(needs, chip)}**"])


def memory_table(needs: Needs, chip: Chip) -> str:
  held = dict(needs.held_bytes)
  rest = needs.peak_bytes - sum(held.values()) - needs.cache_bytes
  rows = [(name, _gib(size)) for name, size in held.items()]
  if needs.cache_bytes:
    rows.append(("keys and values (estimate)", _gib(needs.cache_bytes)))
  rows.append(("activations and other temporaries", _gib(max(rest, 0))))
  rows.append(("at most at a time", f"{_gib(needs.peak_bytes)} of {_gib(chip.hbm_bytes)}"))
  return markdown_table(("memory of a chip", "GiB"), rows)


def network_table(needs: Needs) -> str:
  rows = [
    (axes, kind, f"{size / 1e9:.3f}")
    for axes, kinds in sorted(needs.collectives.items())
    for kind, size in sorted(kinds.items())
  ]
  total = ("all", "", f"{needs.collective_bytes / 1e9:.3f}")
  return markdown_table(("sent by a chip along", "by", "GB"), [*rows, total], text_columns=2)


def time_table(needs: Needs, chip: Chip) -> str:
  rows = [
    (
      "compute",
      f"{needs.flops / 1e12:.3f} TFLOP",
      f"{chip.flops / 1e12:.0f} TFLOP/s",
      _ms(needs.seconds["compute"]),
    ),
    (
      "memory",
      f"{needs.memory_bytes / 1e9:.1f} GB",
      f"{chip.hbm / 1e9:.0f} GB/s",
      _ms(needs.seconds["memory"]),
    ),
    *(
      (name, "", "", _ms(seconds))
      for name, seconds in needs.seconds.items()
      if name not in ("compute", "memory")
    ),
    ("in all, all of it overlapping", "", "", _ms(needs.fastest_s)),
    ("in all, one after the other", "", "", _ms(needs.slowest_s)),
  ]
  low, high = (needs.mfu(s, chip.flops) for s in (needs.slowest_s, needs.fastest_s))
  return (
    markdown_table(("roofline of a chip", "amount", "peak", "ms"), rows)
    + f"\n\nMFU {low:.0%} to {high:.0%}: estimates at peak rates, which no program reaches."
  )


def verdict(needs: Needs, chip: Chip) -> str:
  """One line: whether it fits."""
  if not needs.fits:
    sizes = f"{_gib(needs.peak_bytes)} GiB of the {_gib(chip.hbm_bytes)} GiB"
    return f"{needs.program} does not fit: it needs {sizes} of a {chip.name}."
  spare = chip.hbm_bytes - needs.peak_bytes
  return f"{needs.program} fits, with {_gib(spare)} GiB of {_gib(chip.hbm_bytes)} to spare."


def as_json(
  needs: Sequence[Needs], found: Sequence[Ranked], chip: Chip, **more: Any
) -> dict[str, Any]:
  """All figures, in bytes, operations and seconds; `found` are the candidates of a search, in order."""
  return {
    **more,
    "chip": dataclasses.asdict(chip),
    "ranking": [
      ranked.candidate.settings()
      | {name: getattr(ranked, name) for name in ("fits", "peak_bytes", "fastest_s", "slowest_s")}
      for ranked in found
    ],
    "programs": [
      dataclasses.asdict(program)
      | {
        "collective_bytes": program.collective_bytes,
        "fastest_s": program.fastest_s,
        "slowest_s": program.slowest_s,
        "mfu": [program.mfu(s, chip.flops) for s in (program.slowest_s, program.fastest_s)],
      }
      for program in needs
    ],
  }


def ranking(found: Sequence[Ranked], chip: Chip) -> str:
  """Those that fit, the fastest first; then those that do not."""
  rows = [
    (
      str(place),
      *(str(setting) for setting in ranked.candidate.settings().values()),
      _gib(ranked.peak_bytes),
      f"{ranked.fastest_s * 1e3:.0f}–{ranked.slowest_s * 1e3:.0f}" if ranked.fits else "–",
      "fits" if ranked.fits else "does not fit",
    )
    for place, ranked in enumerate(found, 1)
  ]
  names = [name.removeprefix("mesh.") for name in found[0].candidate.settings()]
  return markdown_table(("rank", *names, "GiB", "ms a step", ""), rows, text_columns=0)


def _gib(size: float) -> str:
  return f"{size / GIB:.2f}"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:.1f}"
