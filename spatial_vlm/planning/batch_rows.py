"""Rows of the batches that a training config computes, by its algorithm."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from spatial_vlm.config import Config
from spatial_vlm.planning.programs import algorithm_of


class BatchRows(NamedTuple):
  """Rows of one update, and how many model rows each of them has."""

  per_update: int
  """Rows (conversations of `sft`, groups of `dapo`) that one update learns from."""
  model_rows: int
  """Rows of the model's batch for each of them: 1, or the answers of a group."""


def sft_rows(config: Config) -> BatchRows:
  return BatchRows(int(config.batch_size), 1)


def dapo_rows(config: Config) -> BatchRows:
  return BatchRows(int(config.groups_per_batch // config.minibatches), int(config.group_size))


BATCH_ROWS: Mapping[str, Callable[[Config], BatchRows]] = {"sft": sft_rows, "dapo": dapo_rows}
"""Training command (the leaf `algorithm` of its configs) → function that returns its rows."""


def rows_per_update(config: Config) -> int:
  """Returns the rows (of `dapo`: groups) that one update learns from."""
  return BATCH_ROWS[algorithm_of(config)](config).per_update


def rows_per_micro_batch(config: Config) -> int:
  """Returns the rows (of `dapo`: answers) that the model computes at once in training."""
  rows = BATCH_ROWS[algorithm_of(config)](config)
  return rows.per_update * rows.model_rows // int(config.micro_batches)
