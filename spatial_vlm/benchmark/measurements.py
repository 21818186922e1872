"""The measurements by name, and how a start of the bench makes those of its config."""

import dataclasses
import logging
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax

from spatial_vlm.benchmark.correctness import attention_rows, parity_rows
from spatial_vlm.benchmark.dapo_rows import dapo_rows
from spatial_vlm.benchmark.inference_rows import decode_rows, forward_rows
from spatial_vlm.benchmark.prefix_rows import prefix_rows
from spatial_vlm.benchmark.row import Row
from spatial_vlm.benchmark.subject import MODELS, Subject, row_shape
from spatial_vlm.benchmark.training_rows import sft_rows
from spatial_vlm.config import Config, UsageError
from spatial_vlm.settings.names import DTYPES

MEASUREMENTS: Mapping[str, Callable[[Subject], Iterator[Row]]] = {
  "attention": attention_rows,
  "parity": parity_rows,
  "forward": forward_rows,
  "decode": decode_rows,
  "prefix": prefix_rows,
  "sft": sft_rows,
  "dapo": dapo_rows,
}
"""Name in the leaf `measurements` → function that yields its rows."""

log = logging.getLogger(__name__)


class Progress(NamedTuple):
  """What a start of the bench has got to."""

  row: Row | None
  """A finished row."""
  running: str
  """Name of the measurement in progress; empty at its end."""


def measure(subject: Subject) -> Iterator[Progress]:
  """Yields rows as they are measured, and where a measurement begins and ends.

  A measurement that fails yields a row with the error. One that would start after `time_limit_s` is left out.
  """
  start = time.monotonic()
  limit = subject.config.time_limit_s
  for name in subject.config.measurements:
    if time.monotonic() - start > limit:
      yield Progress(Row(subject.name, name, error=f"left out: {limit} s were over"), "")
      continue
    yield Progress(None, name)
    try:
      with jax.set_mesh(subject.mesh):  # the kernels read the mesh
        for row in MEASUREMENTS[name](subject):
          yield Progress(with_limits(row, subject), name)
    except Exception as error:  # e.g. out of memory: other measurements go on
      log.info("%s", traceback.format_exc())
      yield Progress(Row(subject.name, name, error=_in_short(error)), name)
    yield Progress(None, "")


def with_limits(row: Row, subject: Subject) -> Row:
  """Returns the row with the machine's limits."""
  return dataclasses.replace(
    row,
    limit_flops_per_s=subject.limits.flops_per_s,
    limit_bytes_per_s=subject.limits.bytes_per_s,
  )


def _in_short(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0][:300]}"


def check(config: Config) -> None:
  """Raises UsageError for settings that cannot work."""
  for name in ("decode", "prefix", "sft", "dapo"):
    _check_rows(config, name)
  for name in ("sft", "dapo"):
    if config[name].frozen_int8:
      raise UsageError(
        f"{name}.frozen_int8 is True; the bench has random weights in {DTYPES} alone"
      )


def _check_rows(config: Config, name: str) -> None:
  """Raises UsageError unless the images of a row fit into it."""
  group, model = config[name], MODELS[config.model]
  merge = model.vision.spatial_merge_size
  if any(side % merge for side in group.grid):
    raise UsageError(
      f"{name}.grid is {group.grid}; give rows and columns of patches, multiples of {merge}"
    )
  least = row_shape(group).least_tokens(model)
  if group.tokens < least:
    raise UsageError(
      f"{name}.tokens is {group.tokens}; {group.images} images of {group.grid} patches need {least}"
    )
