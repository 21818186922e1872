"""Costs of compiled programs: bounds by hand, and the compiler's refusal."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatial_vlm import sharding
from spatial_vlm.planning import compiled
from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.collectives import Collective
from spatial_vlm.planning.compiled import (
  DeviceMemory,
  Program,
  ProgramCost,
  ProgramKind,
  TracedProgram,
  bytes_by_axes,
  bytes_per_chip,
  compile_program,
  roofline,
)

CHIP = Chip(
  "toy",
  hbm_bytes=GIB,
  peak_flops=1e12,
  hbm_bytes_per_s=1e9,
  ici_bytes_per_s=1e8,
  dcn_bytes_per_s=1e7,
)


@pytest.fixture
def mesh():
  return sharding.make_mesh({"slice": 2, "fsdp": 4})


def test_bytes_per_chip_are_those_of_its_shard(mesh):
  cut = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
  whole = jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
  assert bytes_per_chip({"a": cut, "b": [whole]}) == 2 * 3 * 4 + 5 * 2


def test_bounds_by_hand(mesh):
  """Links of one dimension, both ways: 2e8 bytes a second; between slices 1e7."""
  collectives = [
    Collective("all-gather", ("fsdp",), bytes=10**6, runs=20, scopes=()),
    Collective("all-reduce", ("fsdp",), bytes=10**7, runs=2, scopes=()),
    Collective("send", ("slice",), bytes=10**6, runs=1, scopes=()),
  ]
  trace = TracedProgram(Refusing(), mesh, flops=8e12, model_flops=0.0, trip_count=1)
  found = roofline(CHIP, trace, 3 * 10**9, collectives)
  expected = {"compute": 1.0, "memory": 3.0, "network fsdp": 4e7 / 2e8, "network slice": 0.1}
  assert found == pytest.approx(expected)
  assert bytes_by_axes(collectives) == {
    "fsdp": {"all-gather": 2 * 10**7, "all-reduce": 2 * 10**7},
    "slice": {"send": 10**6},
  }


def traced(mesh, function, *shapes, donate=()):
  jitted = jax.jit(function, donate_argnums=donate)
  donated = sum(map(bytes_per_chip, [shapes[i] for i in donate]))
  return Program(
    "toy",
    ProgramKind.TRAINING,
    TracedProgram(jitted.trace(*shapes), mesh, flops=0.0, model_flops=0.0, trip_count=1),
    DeviceMemory(inputs={"table": shapes}, donated_bytes=donated),
  )


def refused(mesh):
  trace = TracedProgram(Refusing(), mesh, flops=0.0, model_flops=0.0, trip_count=1)
  return Program("toy", ProgramKind.TRAINING, trace, DeviceMemory(inputs={}))


class Refusing:
  """A traced program that the compiler refuses."""

  message = ""

  def lower(self, **_):
    raise jax.errors.JaxRuntimeError(self.message)


@pytest.mark.parametrize(
  "words",
  [
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 17.46G of 15.75G hbm. Exceeded hbm …",
    "Ran out of memory on HBM, the total memory required for HLO temporaries (17.46G) exceeds available HBM (15.75G).",
  ],
)
def test_size_is_read_from_the_refusal_of_the_compiler(mesh, monkeypatch, words):
  monkeypatch.setattr(Refusing, "message", f"RESOURCE_EXHAUSTED: {words}")
  found = compile_program(refused(mesh), CHIP)
  assert not found.fits and found.peak_bytes == round(17.46 * GIB)
  assert found.fastest_s == found.slowest_s == 0 and found.mfu(0.0, 1.0) == 0.0


def test_other_errors_of_the_compiler_are_raised(mesh, monkeypatch):
  monkeypatch.setattr(Refusing, "message", "INTERNAL: something else")
  with pytest.raises(ValueError, match="does not compile: INTERNAL: something else"):
    compile_program(refused(mesh), CHIP)


@pytest.fixture
def on_cpu(monkeypatch):
  """Programs lowered for this machine."""
  monkeypatch.setattr(compiled, "PLATFORM", "cpu")


def test_lost_donation_is_found(mesh, on_cpu):
  """A donated array without a result of its shape cannot be overwritten."""
  table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
  kept = compile_program(traced(mesh, lambda x: x + 1, table, donate=(0,)), CHIP)
  lost = compile_program(traced(mesh, lambda x: x[:10].sum(), table, donate=(0,)), CHIP)
  assert (kept.lost_donation_bytes, lost.lost_donation_bytes) == (0, 64 * 32 * 4)


def test_resident_arrays_count(mesh, on_cpu):
  table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
  alone = traced(mesh, lambda x: x + 1, table)
  giant = jax.ShapeDtypeStruct((2**28,), jnp.float32, sharding=NamedSharding(mesh, P()))
  crowded = alone._replace(memory=alone.memory._replace(resident={"training": giant}))
  assert compile_program(alone, CHIP).fits and not compile_program(crowded, CHIP).fits
  assert compile_program(crowded, CHIP).resident_bytes["training"] == GIB
  np.testing.assert_array_less(GIB, compile_program(crowded, CHIP).peak_bytes)


def test_costs_survive_json(mesh, on_cpu):
  table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
  cost = compile_program(traced(mesh, lambda x: x + 1, table), CHIP)
  read = ProgramCost.from_json(json.loads(json.dumps(dataclasses.asdict(cost))))
  assert read == cost and read.kind is ProgramKind.TRAINING
