"""Metrics: (sum, count) pairs until the host divides them, and the writer of a run's metrics."""

import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self, SupportsFloat

import jax
import jax.numpy as jnp
from etils import epath
from jaxtyping import Array
from tensorboardX import SummaryWriter

from spatial_vlm.config import UsageErrorOfAll
from spatial_vlm.jsonl import next_part, parse_json, parts
from spatial_vlm.remote import is_remote

Sums = dict[str, tuple[Array, Array]]
"""Name -> (sum, count); a name that ends in `_max` has (maximum, count)."""

CLOCK_PREFIX = "time/"
"""Prefix of clock readings; all other metrics are equal in a resumed and an uninterrupted run."""


def add(a: Sums, b: Sums) -> Sums:
  """Adds two dicts of sums; a name that only one of them has is kept.

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


def means(sums: Mapping[str, tuple[SupportsFloat, SupportsFloat]]) -> dict[str, float]:
  """Returns sum / count, or the maximum, as floats; names with a count of 0 are omitted.

  >>> means({"loss": (3.0, 2), "clip_high_prob": (0.0, 0), "ratio_max": (1.5, 4)})
  {'loss': 1.5, 'ratio_max': 1.5}
  """
  return {
    name: float(total) / (1 if name.endswith("_max") else float(count))
    for name, (total, count) in sums.items()
    if count
  }


class PhaseClock:
  """Adds up the seconds of named phases until they are read.

  clock = PhaseClock()
  with clock.phase("time/sampling_s"):
    …  # ends with results that are ready: work on devices is asynchronous
  clock.read()  # {"time/sampling_s": 1.2}

  `now` tells the time in seconds: `time.perf_counter` by default, `time.process_time` for CPU seconds.
  """

  def __init__(self, now: Callable[[], float] | None = None) -> None:
    self._now = now or time.perf_counter
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time that its block takes to the phase; `name` is that of the metric."""
    start = self._now()
    yield
    self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - start

  def read(self) -> dict[str, float]:
    """Returns the seconds of each phase since the last call, as metrics."""
    seconds, self._seconds = self._seconds, {}
    return seconds


class MetricsWriter:
  """Writes the metrics of one start of a run: metrics/part-NNNNN.jsonl and TensorBoard events.

  Every start creates its own part with its first record, and changes no other; `read_metrics` joins the parts. All
  processes have the same values, and process 0 writes. Each record is flushed, so on a disk a kill loses none.
  Write a step and call `commit` before saving its checkpoint: a run that resumes from there does not write the step
  again.

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
    """Writes one record; names of clock readings start with `time/`.

    `read_metrics` joins several records of one step.

    Raises:
      UsageErrorOfAll: a value is NaN or infinite.
    """
    values = {name: float(value) for name, value in values.items()}
    bad = {name: value for name, value in values.items() if not math.isfinite(value)}
    if bad:
      named = ", ".join(f"{name} = {value}" for name, value in bad.items())
      raise UsageErrorOfAll(
        f"{named} at step {step}; metrics must be finite. Training has diverged: start again in another "
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

  def commit(self) -> None:
    """Makes all records durable, so that no kill loses them.

    On an object store a file appears only once it is closed, so this closes the part there. On a disk, `write` has done
    it.
    """
    if is_remote(self._workdir):
      self.close()

  def close(self) -> None:
    """Closes the part; a later record starts another one."""
    if self._outputs is not None:
      part, events = self._outputs
      part.close()
      events.close()
      self._outputs = None
      if is_remote(self._workdir):
        _move(Path(events.logdir), self._workdir / "tensorboard")

  def _open(self, step: int) -> tuple[IO[str], SummaryWriter]:
    folder = self._workdir / "metrics"
    folder.mkdir(parents=True, exist_ok=True)
    path = next_part(folder)
    # On gs://, tensorboardX would upload the whole file at each flush. Events are written here, and `close` moves them.
    is_local = not is_remote(self._workdir)
    events = str(self._workdir / "tensorboard") if is_local else tempfile.mkdtemp()
    # purge_step makes TensorBoard discard an interrupted start's events from this step on.
    # The suffix keeps the names of parts apart that begin within one second.
    writer = SummaryWriter(events, purge_step=int(step), filename_suffix=f".{path.stem}")
    return path.open("w"), writer


def _move(source: Path, target: epath.Path) -> None:
  target.mkdir(parents=True, exist_ok=True)
  for file in source.iterdir():
    (target / file.name).write_bytes(file.read_bytes())
  shutil.rmtree(source)


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """Returns one record per step, in order: {"step": …, name: value, …}.

  A part that starts at step s was written by a run that resumed from a checkpoint before s, so it replaces the earlier
  parts' records of s and later steps. An incomplete last line of a part, cut by a kill, is ignored.

  Raises:
    ValueError: another line is not a record; the error names file and line.
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
  *lines, torn = path.read_bytes().split(b"\n")
  records = []
  for number, line in enumerate(lines, 1):
    try:
      record = parse_json(line)
      if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("no object with a step")
      records.append(record)
    except ValueError as error:
      raise ValueError(
        f"{path}:{number} is not a metrics record ({error}); remove the line"
      ) from error
  return records
