"""Search over the settings of a topology: mesh shape, micro-batches and rematerialisation policy."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from spatial_vlm.config import Config, UsageError
from spatial_vlm.planning.batch_rows import BATCH_ROWS, rows_per_update
from spatial_vlm.planning.compiled import ProgramCost
from spatial_vlm.planning.programs import algorithm_of
from spatial_vlm.planning.target import Target
from spatial_vlm.progress import progress_bar
from spatial_vlm.sharding import AXES

REMAT = ("dots", "attention", "context", "full")
"""Policies that the search tries: "none" hardly ever fits, "offload" takes minutes to compile."""
MAX_TENSOR = 16
"""Largest tensor-parallel degree that the search tries: above it, communication takes most of the time."""
MAX_FSDP = 128
"""Largest power of two that divides the widths of all published sizes (256 does not divide 1,152)."""


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Settings of a training command that change its cost, not its results."""

  mesh: tuple[int, int, int, int]
  """Sizes of `sharding.AXES`."""
  micro_batches: int
  remat: str

  def settings(self) -> dict[str, Any]:
    """Returns them as leaves of a config."""
    mesh = {f"mesh.{axis}": size for axis, size in zip(AXES, self.mesh, strict=True)}
    return {**mesh, "micro_batches": self.micro_batches, "remat": self.remat}


@dataclasses.dataclass(frozen=True)
class Trial:
  """A candidate and the costs of its programs."""

  candidate: Candidate
  costs: Sequence[ProgramCost]

  @property
  def fits(self) -> bool:
    return all(cost.fits for cost in self.costs)

  @property
  def peak_bytes(self) -> int:
    return max(cost.peak_bytes for cost in self.costs)

  @property
  def fastest_s(self) -> float:
    return sum(cost.fastest_s for cost in self.costs)

  @property
  def slowest_s(self) -> float:
    return sum(cost.slowest_s for cost in self.costs)


def search_settings(
  config: Config, target: Target, costs_of: Callable[[Config], list[ProgramCost]]
) -> list[Trial]:
  """Tries meshes, micro-batches and rematerialisation policies for a config; returns them ranked.

  Args:
    config: of a training command.
    target: the chips.
    costs_of: compiles the programs of a config.

  Raises:
    UsageError: no mesh of these chips can share the rows of an update.
  """
  if algorithm_of(config) not in BATCH_ROWS:
    raise UsageError(f"--search is for training: give a config of {' or '.join(BATCH_ROWS)}")
  rows = rows_per_update(config)
  shapes = meshes(len(target.devices), target.slices)

  def attempt(candidate: Candidate) -> Trial:
    bar.set_postfix_str(" ".join(map(str, candidate.settings().values())))
    return Trial(candidate, costs_of(with_leaves(config, candidate.settings())))

  trials = []
  with progress_bar("searching", len(shapes) * len(REMAT), unit="candidate") as bar:
    for trial in search(shapes, rows, attempt):
      trials.append(trial)
      bar.update(trial.fits)
  if not trials:
    raise UsageError(
      f"no mesh of {len(target.devices)} chips divides the {rows} rows of an update; make batch_size (of `dapo`: "
      "groups_per_batch) a multiple of the chips"
    )
  return rank(trials)


def with_leaves(config: Config, leaves: Mapping[str, Any]) -> Config:
  """Returns a copy of the config with other values of some leaves, given by their dotted names."""
  result = config.copy_and_resolve_references()
  for name, value in leaves.items():
    group, _, leaf = name.rpartition(".")
    (result[group] if group else result)[leaf] = value
  return Config(result)


def meshes(chips: int, slices: int) -> list[tuple[int, int, int, int]]:
  """Returns the mesh shapes to try on `chips`: one per tensor-parallel degree.

  Parameters are sharded over as many devices (`fsdp`) as their widths allow. Replicas (`data`) take the rest: they save
  no memory and send as much.
  """
  found = []
  for tensor in (2**i for i in range(MAX_TENSOR.bit_length())):
    others, rest = divmod(chips // slices, tensor)
    fsdp = math.gcd(others, MAX_FSDP)
    if others and not rest:
      found.append((slices, others // fsdp, fsdp, tensor))
  return found


def search(
  shapes: Iterable[tuple[int, int, int, int]],
  rows: int,
  attempt: Callable[[Candidate], Trial],
) -> Iterator[Trial]:
  """Yields trials of every mesh with every policy, each up to the fewest micro-batches that fit.

  More micro-batches would only take longer. A mesh is skipped if its row axes do not divide `rows`, the rows of an
  update.
  """
  for mesh, policy in itertools.product(shapes, REMAT):
    shares = math.prod(mesh[:3])
    if rows % shares:
      continue
    for count in (2**i for i in range(rows.bit_length())):
      if (rows // shares) % count:
        break
      trial = attempt(Candidate(mesh, count, policy))
      yield trial
      if trial.fits:
        break


def rank(trials: Iterable[Trial]) -> list[Trial]:
  """Sorts trials: those that fit by the middle of their time bounds, then the others by their memory."""
  return sorted(
    trials,
    key=lambda trial: (not trial.fits, trial.fastest_s + trial.slowest_s, trial.peak_bytes),
  )
