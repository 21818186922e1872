"""Advice in terms of the config's leaves."""

from spatial_vlm.planning.advice import REMEDIES, SAMPLING, advise
from spatial_vlm.planning.chips import GIB
from spatial_vlm.planning.compiled import ProgramCost, ProgramKind
from spatial_vlm.planning.programs import PROGRAMS


def cost_of(kind=ProgramKind.TRAINING, fits=True, resident=None, **more):
  return ProgramCost(
    name="program",
    kind=kind,
    chip="v5e",
    chips=8,
    fits=fits,
    peak_bytes=20 * GIB,
    resident_bytes=resident or {"parameters": 2 * GIB},
    kv_cache_bytes=0,
    flops=0.0,
    model_flops=0.0,
    memory_bytes=0,
    collectives={},
    **{"lost_donation_bytes": 0, "loop_collective_bytes": {}, **more},
    seconds={},
  )


def test_batch_rows_that_leave_chips_idle_are_reported(load_config, eight_chips):
  config = load_config("configs/sft.py:8b", "batch_size=12", "micro_batches=3")
  [line] = advise(config, cost_of(), eight_chips)
  assert line.startswith("4 rows at a time are sharded over 1 of 8 groups of chips")
  assert advise(load_config("configs/sft.py:8b"), cost_of(), eight_chips) == []


def test_large_collectives_in_loops_and_lost_donations_are_named(load_config, eight_chips):
  cost = cost_of(loop_collective_bytes={"tokens": 0, "chunks": 3 * 10**9}, lost_donation_bytes=GIB)
  in_loop, copied = advise(load_config("configs/sft.py:8b"), cost, eight_chips)
  assert in_loop.startswith("collectives above 100 MB that run again for every chunk of logits")
  assert in_loop.endswith("send 3.0 GB: raise chunk_tokens")
  assert copied.startswith("1.00 GiB of donated arrays are copied")


def test_training_that_does_not_fit_gets_remedies(load_config, eight_chips):
  config = load_config("configs/sft.py:8b", "remat=dots", "batch_size=32", "micro_batches=2")
  cost = cost_of(fits=False, resident={"parameters": 4 * GIB, "optimizer": 8 * GIB})
  lines = advise(config, cost, eight_chips)
  assert "12.0 GiB stay on each chip: shard them over more chips (mesh.fsdp; about 16" in lines[0]
  assert lines[1].startswith("remat is dots")
  assert lines[2] == "each chip computes 2 rows at a time: raise micro_batches from 2"


def test_sampling_is_made_smaller_by_its_own_settings(load_config, eight_chips):
  cost = cost_of(ProgramKind.SAMPLING, fits=False, resident={"rollout weights": GIB})
  [line] = advise(load_config("configs/dapo.py:8b"), cost, eight_chips)
  assert "raise sampling_mesh.tensor (now 8, up to 8); lower rollout_batch_size" in line


def test_generation_is_made_smaller_by_the_settings_of_its_command(load_config, eight_chips):
  cost = cost_of(ProgramKind.SAMPLING, fits=False, resident={"rollout weights": GIB})
  [line] = advise(load_config("configs/evaluate.py:8b"), cost, eight_chips)
  assert line == "raise mesh.tensor (now -1, up to 8); lower batch_size or max_new_tokens"


def test_every_kind_of_program_and_every_command_has_advice():
  assert REMEDIES.keys() == {*ProgramKind}
  assert SAMPLING.keys() == PROGRAMS.keys() - {"sft"}
