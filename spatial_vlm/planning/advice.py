"""Advice on a plan, in terms of the config's leaves: what to change if a program does not fit or wastes chips."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from spatial_vlm import sharding
from spatial_vlm.config import Config
from spatial_vlm.objectives.cross_entropy import CHUNKS
from spatial_vlm.planning.batch_rows import rows_per_micro_batch
from spatial_vlm.planning.chips import GIB
from spatial_vlm.planning.compiled import LARGE_COLLECTIVE_BYTES, ProgramCost, ProgramKind
from spatial_vlm.planning.target import Target
from spatial_vlm.rollout.sampler import TOKENS

RESIDENT_SHARE = 0.6
"""Share of the HBM that resident arrays may take before the advice is to shard them further."""


class Loop(NamedTuple):
  """A loop that must not repeat large collectives."""

  repeats: str
  remedy: str


LOOPS: Mapping[str, Loop] = {
  TOKENS: Loop("token", "shard the weights by sampling_mesh.tensor"),
  CHUNKS: Loop("chunk of logits", "raise chunk_tokens"),
}
"""Scope of the loop in the compiled program → what to do."""


class ProgramBatch(NamedTuple):
  """Rows that a program computes at once, and the mesh that they are sharded over."""

  rows: int
  mesh: Mesh


def advise(config: Config, cost: ProgramCost, target: Target) -> list[str]:
  """Returns one line per change that would help: to make the program fit, and to use what it wastes."""
  lines = []
  if not cost.fits:
    lines += shrink_resident(cost, target)
    lines += REMEDIES[cost.kind](config, target)
  lines += fill_chips(BATCHES[cost.kind](config, target))
  lines += move_out_of_loops(cost)
  if cost.lost_donation_bytes:
    lines.append(
      f"{cost.lost_donation_bytes / GIB:.2f} GiB of donated arrays are copied instead of overwritten"
    )
  return lines


def shrink_resident(cost: ProgramCost, target: Target) -> list[str]:
  """Advises on arrays that stay on the chips, if they take most of the memory."""
  resident, allowed = sum(cost.resident_bytes.values()), RESIDENT_SHARE * target.chip.hbm_bytes
  if resident <= allowed:
    return []
  chips = 2 ** math.ceil(math.log2(cost.chips * resident / allowed))
  return [
    f"{resident / GIB:.1f} GiB stay on each chip: shard them over more chips (mesh.fsdp; about {chips}), or train "
    "LoRA factors (lora.rank, trainable)"
  ]


def shrink_training(config: Config, target: Target) -> list[str]:
  """Returns the settings that make a training program smaller, the most effective first."""
  lines = []
  if config.remat not in ("full", "offload"):
    lines.append(
      f"remat is {config.remat}: full keeps the least on the chip; offload moves that to the host's memory"
    )
  batch = training_batch(config, target)
  parts = sharding.axis_product(batch.mesh, sharding.ROWS)
  if batch.rows > parts:
    lines.append(
      f"each chip computes {batch.rows // parts} rows at a time: raise micro_batches from {config.micro_batches}"
    )
  lines.append(f"lower chunk_tokens from {config.chunk_tokens}, or raise mesh.tensor")
  return lines


def shrink_sampling(config: Config, target: Target) -> list[str]:
  """Returns the settings that make sampling smaller."""
  heads = target.model.text.num_key_value_heads
  return [
    f"raise sampling_mesh.tensor (now {config.sampling_mesh.tensor}, up to {heads}); lower rollout_batch_size, "
    "group_size or max_new_tokens"
  ]


REMEDIES: Mapping[ProgramKind, Callable[[Config, Target], list[str]]] = {
  ProgramKind.TRAINING: shrink_training,
  ProgramKind.SAMPLING: shrink_sampling,
}


def training_batch(config: Config, target: Target) -> ProgramBatch:
  mesh = sharding.make_mesh(config.mesh, target.devices)
  return ProgramBatch(rows_per_micro_batch(config), mesh)


def sampling_batch(config: Config, target: Target) -> ProgramBatch:
  mesh = sharding.make_mesh(config.sampling_mesh, target.devices)
  return ProgramBatch(config.rollout_batch_size, mesh)


BATCHES: Mapping[ProgramKind, Callable[[Config, Target], ProgramBatch]] = {
  ProgramKind.TRAINING: training_batch,
  ProgramKind.SAMPLING: sampling_batch,
}


def fill_chips(batch: ProgramBatch) -> list[str]:
  """Advises on rows that do not divide over all chips."""
  parts = sharding.axis_product(batch.mesh, sharding.ROWS)
  used = sharding.axis_product(
    batch.mesh, sharding.divisible_axes(sharding.ROWS, batch.mesh, batch.rows)
  )
  if used == parts:
    return []
  return [
    f"{batch.rows} rows at a time are sharded over {used} of {parts} groups of chips, and the others repeat the same "
    f"work: make the rows a multiple of {parts}"
  ]


def move_out_of_loops(cost: ProgramCost) -> list[str]:
  """Advises on large collectives that run again for every token or chunk."""
  return [
    f"collectives above {LARGE_COLLECTIVE_BYTES // 10**6} MB that run again for every {LOOPS[scope].repeats} send "
    f"{size / 1e9:.1f} GB: {LOOPS[scope].remedy}"
    for scope, size in cost.loop_collective_bytes.items()
    if size
  ]
