"""Metrics: sums before means on the way to the host, and one writer to the workdir."""

import json
import math
from collections.abc import Mapping
from typing import IO, Any, Self

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array
from tensorboardX import SummaryWriter

from spatial_vlm.config import UsageErrorOfAll
from spatial_vlm.jsonl import next_part, parts

Sums = dict[str, tuple[Array, Array]]
"""Name -> (sum, count) over whatever was seen; a name that ends in `_max` has (maximum, count)."""

CLOCK_PREFIX = "time/"
"""Such names hold clock readings; all else is equal in a resumed and an uninterrupted run."""


def add(a: Sums, b: Sums) -> Sums:
  """Sums over both; a name that only one of them has is kept.

  >>> add({"loss": (3.0, 2)}, {"loss": (1.0, 2), "ratio_max": (1.2, 1)})
  {'loss': (4.0, 4), 'ratio_max': (1.2, 1)}
  """
  both = {name: _add(name, a[name], b[name]) for name in a if name in b}
  return {**a, **b, **both}


def _add(name: str, a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
  return (jnp.maximum(a[0], b[0]) if name.endswith("_max") else a[0] + b[0]), a[1] + b[1]


def zeros(sums: Sums) -> Sums:
  """Sums of nothing, with the names and types of `sums` (arrays or shapes)."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums)


def means(sums: Sums) -> dict[str, float]:
  """sum / count, or the maximum, as floats; a name that counted nothing has no mean and is left out.

  >>> means({"loss": (3.0, 2), "clip_high_prob": (0.0, 0), "ratio_max": (1.5, 4)})
  {'loss': 1.5, 'ratio_max': 1.5}
  """
  return {
    name: float(total) / (1 if name.endswith("_max") else float(count))
    for name, (total, count) in sums.items()
    if count
  }


class MetricsWriter:
  """Writes the metrics of one start of a run: metrics/part-NNNNN.jsonl and TensorBoard events.

  Every start writes its own part, made with its first record and never touched by another start;
  `read_metrics` joins the parts. Of several processes, which all have the same values, the first
  writes. Each record is flushed, so a killed process loses none. Write a step before saving its
  checkpoint: a run that goes on from there does not write the step again.

    with MetricsWriter(workdir) as writer:
      writer.write(step, {"loss": 0.7, "time/step_s": 0.3})
  """

  def __init__(self, workdir: epath.PathLike):
    self._workdir = epath.Path(workdir)
    self._outputs: tuple[IO[str], SummaryWriter] | None = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one record; clock readings go under names that start with `time/`.

    Several records of one step are one for `read_metrics`. Raises UsageErrorOfAll, naming
    metrics and step, for NaN or infinity.
    """
    values = {name: float(value) for name, value in values.items()}
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
      named = ", ".join(f"{name} = {value}" for name, value in bad.items())
      raise UsageErrorOfAll(
        f"{named} at step {step}; metrics must be finite. Training has diverged: start anew in another "
        "--workdir with a lower learning rate or clipping norm (`export` gives the last checkpoint's weights)"
      )
    if jax.process_index() > 0:
      return
    if self._outputs is None:
      self._outputs = self._open(step)
    part, events = self._outputs
    record = {"step": int(step), **values}
    part.write(json.dumps(record, allow_nan=False) + "\n")
    part.flush()
    for name, value in values.items():
      events.add_scalar(name, value, step)
    events.flush()

  def close(self) -> None:
    """Closes the part; a later record starts another.

    An object store shows a file only once it is closed: there, call this before each checkpoint.
    """
    if self._outputs is not None:
      part, events = self._outputs
      part.close()
      events.close()
      self._outputs = None

  def _open(self, step: int) -> tuple[IO[str], SummaryWriter]:
    folder = self._workdir / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    part = next_part(folder).open("w")
    # purge_step: TensorBoard forgets what an interrupted start logged from this step on.
    return part, SummaryWriter(str(self._workdir / "tensorboard"), purge_step=int(step))


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """One record for every step, in order: {"step": …, name: value, …}; empty when none was written.

  A part that starts at step s was written by a run that went on from a checkpoint before s, so it
  supersedes all that earlier parts say of s and beyond. A line torn by a kill, always the last of
  its part, is left out.

  Raises ValueError, naming file and line, for any other line that is no record.
  """
  folder = epath.Path(workdir) / "metrics"
  steps: dict[int, dict[str, Any]] = {}
  for path in parts(folder):
    records = _read_part(path)
    if records:
      steps = {step: record for step, record in steps.items() if step < records[0]["step"]}
    for record in records:
      steps.setdefault(record["step"], {}).update(record)
  return [steps[step] for step in sorted(steps)]


def _read_part(path: epath.Path) -> list[dict[str, Any]]:
  *lines, torn = path.read_text().split("\n")
  records = []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError as error:
      raise ValueError(
        f"{path}:{number} is not a metrics record ({error}); remove the line"
      ) from error
  return records
