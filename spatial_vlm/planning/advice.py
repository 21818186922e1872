"""Advice on a plan, in terms of the config's leaves: what to change if a program does not fit or wastes chips."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import NamedTuple

from spatial_vlm import sharding
from spatial_vlm.config import Config
from spatial_vlm.objectives.cross_entropy import CHUNKS
from spatial_vlm.planning.batch_rows import rows_per_micro_batch
from spatial_vlm.planning.chips import GIB
from spatial_vlm.planning.compiled import LARGE_COLLECTIVE_BYTES, ProgramCost, ProgramKind
from spatial_vlm.planning.programs import algorithm_of
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


def advise(config: Config, cost: ProgramCost, target: Target) -> list[str]:
  """Returns one line per change that would help: to make the program fit, and to use what it wastes."""
  lines = []
  if not cost.fits:
    lines += shrink_resident(cost, target)
    lines += REMEDIES[cost.kind](config, target)
  if cost.kind == ProgramKind.TRAINING:
    lines += fill_chips(config, target)
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
  rows, parts = rows_per_micro_batch(config), row_parts(config, target)
  if rows > parts:
    lines.append(
      f"each chip computes {rows // parts} rows at a time: raise micro_batches from {config.micro_batches}"
    )
  lines.append(f"lower chunk_tokens from {config.chunk_tokens}, or raise mesh.tensor")
  return lines


class SamplingLeaves(NamedTuple):
  """Leaves of a command's config that its sampling depends on."""

  mesh: str
  size: tuple[str, ...]
  """Those that make it smaller."""


SAMPLING: Mapping[str, SamplingLeaves] = {
  "dapo": SamplingLeaves(
    "sampling_mesh", ("rollout_batch_size", "validate_batch", "group_size", "max_new_tokens")
  ),
  "evaluate": SamplingLeaves("mesh", ("batch_size", "max_new_tokens")),
  "behaviors": SamplingLeaves("mesh", ("batch_size", "max_new_tokens")),
  "serve": SamplingLeaves("mesh", ("slots", "max_new_tokens")),
  "answer": SamplingLeaves("mesh", ("max_patches", "max_new_tokens")),
  "synthesize": SamplingLeaves("policy.mesh", ("policy.batch_size", "max_output_tokens")),
}
"""Command → what its sampling depends on."""


def shrink_sampling(config: Config, target: Target) -> list[str]:
  """Returns the settings that make sampling or generation smaller."""
  leaves = SAMPLING[algorithm_of(config)]
  tensor = operator.attrgetter(f"{leaves.mesh}.tensor")(config)
  heads = target.model.text.num_key_value_heads
  return [
    f"raise {leaves.mesh}.tensor (now {tensor}, up to {heads}); lower {' or '.join(leaves.size)}"
  ]


REMEDIES: Mapping[ProgramKind, Callable[[Config, Target], list[str]]] = {
  ProgramKind.TRAINING: shrink_training,
  ProgramKind.SAMPLING: shrink_sampling,
  ProgramKind.OTHER: lambda config, target: [],
}


def row_parts(config: Config, target: Target) -> int:
  """Returns the parts that the training mesh cuts rows into."""
  mesh = sharding.make_mesh(config.mesh, target.devices)
  return sharding.axis_product(mesh, sharding.ROWS)


def fill_chips(config: Config, target: Target) -> list[str]:
  """Advises on rows of training that do not divide over all chips."""
  mesh, rows = sharding.make_mesh(config.mesh, target.devices), rows_per_micro_batch(config)
  parts = row_parts(config, target)
  used = sharding.axis_product(mesh, sharding.divisible_axes(sharding.ROWS, mesh, rows))
  if used == parts:
    return []
  return [
    f"{rows} rows at a time are sharded over {used} of {parts} groups of chips, and the others repeat the same "
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
