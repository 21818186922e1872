"""Finished evaluations, read from their workdirs and paired by their settings."""

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError, matches_any
from spatial_vlm.evaluation.predictions import Prediction, read_predictions
from spatial_vlm.jsonl import read_object

IMMATERIAL = (
  *("algorithm", "batch_size", "in_flight", "limit", "timed_questions", "mesh.*", "max_new_tokens"),
  *("prompt_shapes", "data.max_bad_share", "data.training_records", "data.boxes"),
)
"""Patterns of leaves that make two evaluations no different in kind."""
TEMPLATE = ("template", "prompt")
"""Leaves that choose the wording of the question."""
POLICY = ("checkpoint", "behaviors", "behavior_tokens")
DIRECT, REASONED = ("direct", "zero-shot"), ("chain", "short", "reuse")
"""Methods that answer at once, and those that write their reasoning first."""


@dataclasses.dataclass(frozen=True)
class FinishedRun:
  """The answers of one finished `evaluate`."""

  name: str
  settings: Mapping[str, Any]
  """Leaves of its config."""
  predictions: Sequence[Prediction]
  skipped: int = 0
  """Records without an answer: rows and images that could not be read, and too long prompts."""

  @property
  def control(self) -> str:
    """Name of its control; empty without one."""
    return self.settings.get("control", "")

  def setting(self, *names: str) -> tuple[Any, ...]:
    """Returns the values of these leaves; None for one that it lacks."""
    return tuple(self.settings.get(name) for name in names)

  def kind(self, *without: str) -> str:
    """Returns what two runs must have in common to differ in the leaves `without` only."""
    return json.dumps(
      {
        name: value
        for name, value in sorted({"control": "", **self.settings}.items())
        if name not in without and not matches_any(name, IMMATERIAL)
      }
    )


def read_runs(given: Sequence[str]) -> list[FinishedRun]:
  """Returns the finished evaluations of workdirs, each given as FOLDER or NAME=FOLDER; "runs/evaluate*" is several.

  Raises:
    UsageError: there is none, one is not a finished evaluation, two have one name, or they are about different records.
  """
  runs = [read_run(name, folder) for text in given for name, folder in _named_folders(text)]
  if not runs:
    raise UsageError(f"runs is {given}, which are no folders; give workdirs of `evaluate`")
  repeated = [name for name, count in Counter(run.name for run in runs).items() if count > 1]
  if repeated:
    raise UsageError(
      f"{len(repeated)} names occur twice in runs (first: {repeated[0]!r}); name them: NAME=FOLDER"
    )
  for run in runs[1:]:
    _check_same_records(runs[0], run)
  return runs


def _named_folders(text: str) -> list[tuple[str, epath.Path]]:
  name, equals, folder = text.rpartition("=")
  path = epath.Path(folder).expanduser()
  if "*" not in path.name:
    return [(name if equals else path.name, path)]
  found = sorted(p for p in path.parent.glob(path.name) if (p / "predictions.jsonl").exists())
  return [(f"{name} {p.name}".strip(), p) for p in found]


def read_run(name: str, folder: epath.Path) -> FinishedRun:
  """Reads a workdir; raises UsageError if it does not hold a finished evaluation."""
  try:
    settings = read_object(folder / "config.json")["config"]
    predictions = read_predictions(folder)
    method = settings["method"]
    (row,) = read_object(folder / "results.json")["rows"]
    skipped = int(row.get("skipped") or 0)
  except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
    raise UsageError(
      f"{folder} holds no finished evaluation ({error}); give a workdir in which `evaluate` ended"
    ) from error
  if not predictions or not isinstance(method, str):
    raise UsageError(f"{folder} holds no answer; give a workdir in which `evaluate` ended")
  return FinishedRun(name, settings, predictions, skipped)


def _check_same_records(first: FinishedRun, other: FinishedRun) -> None:
  known = {p.id: p for p in first.predictions}
  for p in other.predictions:
    if p.id in known and (known[p.id].caption, known[p.id].label) != (p.caption, p.label):
      raise UsageError(
        f"runs {first.name!r} and {other.name!r} answer different records: number {p.id} is {known[p.id].caption!r} "
        f"({known[p.id].label}) and {p.caption!r} ({p.label}); compare runs of one file of records"
      )


def differing_settings(runs: Sequence[FinishedRun]) -> list[str]:
  """Returns the leaves in which the runs differ in kind."""
  names = sorted({name for run in runs for name in run.settings})
  return [
    name
    for name in names
    if not matches_any(name, IMMATERIAL)
    and len({json.dumps(run.settings.get(name)) for run in runs}) > 1
  ]


def with_their_controls(runs: Sequence[FinishedRun]) -> list[tuple[FinishedRun, FinishedRun]]:
  """Returns (run with the image, the same under a control) for every control of every run."""
  return [
    (run, other)
    for run in runs
    for other in runs
    if not run.control and other.control and run.kind("control") == other.kind("control")
  ]


def direct_and_reasoned(runs: Sequence[FinishedRun]) -> list[tuple[FinishedRun, FinishedRun]]:
  """Returns (direct answers, reasoned ones) with the image that differ in the method, and perhaps in the policy."""
  free = ("method", *POLICY)
  return [
    (direct, reasoned)
    for direct in runs
    for reasoned in runs
    if direct.settings["method"] in DIRECT
    and reasoned.settings["method"] in REASONED
    and not direct.control
    and direct.kind(*free) == reasoned.kind(*free)
  ]


def of_several_templates(
  runs: Sequence[FinishedRun], leaves: Collection[str] = TEMPLATE
) -> list[list[FinishedRun]]:
  """Returns the groups of runs that differ in the template of their question only."""
  groups: dict[str, list[FinishedRun]] = {}
  for run in runs:
    groups.setdefault(run.kind(*leaves), []).append(run)
  return [group for group in groups.values() if len(group) > 1]
