"""Runs the stages of the demo, several at a time, and resumes with the unfinished ones."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import NamedTuple

from etils import epath

from spatial_vlm.demo.stages import Stage
from spatial_vlm.jsonl import read_object


class Span(NamedTuple):
  """When a stage began and ended, in seconds since 1970."""

  begun: float
  ended: float


def run_stages(
  plan: Sequence[Stage],
  workdir: epath.Path,
  at_once: int,
  pool: Executor,
  run: Callable[[Stage, epath.Path], None],
  announce: Callable[[str], None],
) -> None:
  """Runs every unfinished stage by `run(stage, folder)` in the pool, up to `at_once` at a time, in the plan's order.

  `announce` shows a line when a stage begins. If a stage fails, its error is raised at once, while others may run.
  """
  spans = {stage.name: span for stage in plan if (span := finished(workdir, stage))}
  running: dict[Future, Stage] = {}
  while len(spans) < len(plan):
    for stage in startable(plan, spans, running.values())[: at_once - len(running)]:
      number = len(spans) + len(running) + 1
      left = minutes(seconds_left(plan, spans, at_once))
      announce(f"\n[{number}/{len(plan)}] {stage.title} · {left} left")
      running[pool.submit(_timed, stage, workdir, run)] = stage
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
      spans[running.pop(future).name] = future.result()


def startable(
  plan: Sequence[Stage], done: Collection[str], running: Collection[Stage]
) -> list[Stage]:
  """Returns the stages that could begin now, in the order of the plan."""
  return [
    stage
    for stage in plan
    if stage.name not in done and stage not in running and {*stage.needs} <= {*done}
  ]


def seconds_left(plan: Sequence[Stage], spans: Mapping[str, Span], at_once: int) -> float:
  """Estimates the least time that the unfinished stages take at this machine's pace.

  It is that of the longest chain of stages that wait for each other, or of all stages divided among `at_once`.
  """
  took = sum(span.ended - span.begun for span in spans.values())
  expected = sum(stage.seconds for stage in plan if stage.name in spans)
  until: dict[str, float] = {}
  for stage in plan:
    start = max((until[need] for need in stage.needs), default=0.0)
    until[stage.name] = start + (stage.seconds if stage.name not in spans else 0.0)
  shared = sum(stage.seconds for stage in plan if stage.name not in spans) / at_once
  return max(shared, *until.values()) * (took / expected if took else 1.0)


def _timed(stage: Stage, workdir: epath.Path, run: Callable[[Stage, epath.Path], None]) -> Span:
  """Runs a stage to its end and writes its note; earlier, interrupted starts are not counted."""
  begun, folder = time.time(), workdir / stage.folder
  folder.mkdir(parents=True, exist_ok=True)
  run(stage, folder)
  span = Span(begun, time.time())
  (folder / stage.note).write_text(json.dumps(span._asdict()) + "\n")
  return span


def finished(workdir: epath.Path, stage: Stage) -> Span | None:
  """Returns when a finished stage ran; None for an unfinished one, or where its note cannot be read."""
  try:
    span = Span(**read_object(workdir / stage.folder / stage.note))
  except (FileNotFoundError, ValueError, TypeError):
    return None
  return span if all(type(seconds) in (int, float) for seconds in span) else None


def busy_seconds(spans: Sequence[Span]) -> float:
  """Returns the time during which at least one of the stages ran."""
  total, until = 0.0, 0.0
  for begun, ended in sorted(spans):
    total += max(0.0, ended - max(begun, until))
    until = max(until, ended)
  return total


def minutes(seconds: float) -> str:
  """Returns a duration in words."""
  return f"about {max(1, round(seconds / 60))} min"
