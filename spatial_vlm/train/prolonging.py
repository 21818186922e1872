"""Prolonging a run: another start with more steps or epochs than the run was started with.

The prolonged run equals, bit for bit, one that was started with the longer value: the updates so far must not depend on
the length. Learning rates do where the schedule falls until the end of the run, and batches do where their plan makes
the last ones of what is left over.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from etils import epath

from spatial_vlm.config import Config, UsageError, leaves, read_snapshot
from spatial_vlm.remote import write_whole
from spatial_vlm.workdir import SETTINGS_FILE, holds_only_settings


class RunLength(NamedTuple):
  """How long a run is."""

  leaf: str
  """`steps` or `epochs`."""
  keeps_batches: Callable[[int], bool] = lambda before: True
  """Former value of the leaf → whether a run of that length reads the same batches, up to its end."""


def prolonged(config: Config, workdir: epath.Path, length: RunLength) -> tuple[str, ...]:
  """Returns the leaf that this start raises above its value in the workdir; empty if it does not.

  Raises UsageError where the run so far would have been another with the longer value.
  """
  stored = read_snapshot(workdir) or {}
  if not isinstance(before := stored.get(length.leaf), int) or holds_only_settings(workdir):
    return ()
  if (now := leaves(config)[length.leaf]) <= before:
    return ()
  reason = ""
  if config.optimizer.schedule != "constant" and not config.optimizer.decay_steps:
    reason = (
      f"the learning rates so far belong to a {config.optimizer.schedule} schedule that ends with the run; to be "
      "prolonged, a run is started with optimizer.schedule=constant or with optimizer.decay_steps, the updates after "
      "which the learning rate stays"
    )
  elif not length.keeps_batches(before):
    reason = (
      "the last batches so far were made of what was left of the data, and would be others in a longer run; "
      "data.batching=shuffled with a batch_size that divides the records of all epochs leaves nothing"
    )
  if reason:
    raise UsageError(f"{workdir} cannot be prolonged, {length.leaf} {before} → {now}: {reason}")
  return (length.leaf,)


def store_length(config: Config, workdir: epath.Path, leaf: str) -> None:
  """Replaces the length in the workdir's config.json."""
  path = workdir / SETTINGS_FILE
  content = json.loads(path.read_text())
  content["config"][leaf] = leaves(config)[leaf]
  write_whole(path, json.dumps(content, indent=2) + "\n")
