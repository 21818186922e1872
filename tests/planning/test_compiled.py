"""What a program needs: bounds by hand, and the compiler's refusal."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatial_vlm import sharding
from spatial_vlm.planning import compiled
from spatial_vlm.planning.chips import GIB, Chip
from spatial_vlm.planning.compiled import Program, by_axis, bytes_of_a_chip, needs, roofline
from spatial_vlm.planning.hlo import Collective

CHIP = Chip("toy", hbm_bytes=GIB, flops=1e12, hbm=1e9, ici=1e8, dcn=1e7)


@pytest.fixture
def mesh():
  return sharding.make_mesh({"slice": 2, "fsdp": 4})


def test_a_chip_holds_its_part(mesh):
  cut = jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=NamedSharding(mesh, P("fsdp")))
  whole = jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=NamedSharding(mesh, P()))
  assert bytes_of_a_chip({"a": cut, "b": [whole]}) == 2 * 3 * 4 + 5 * 2


def test_bounds_by_hand(mesh):
  """Links of one dimension, both ways: 2e8 bytes a second; between slices 1e7."""
  exchanges = [
    Collective("all-gather", ("fsdp",), bytes=10**6, runs=20, scopes=()),
    Collective("all-reduce", ("fsdp",), bytes=10**7, runs=2, scopes=()),
    Collective("send", ("slice",), bytes=10**6, runs=1, scopes=()),
  ]
  work = types.SimpleNamespace(mesh=mesh, traced_flops=8e12)
  found = roofline(CHIP, work, 3 * 10**9, exchanges)
  expected = {"compute": 1.0, "memory": 3.0, "network fsdp": 4e7 / 2e8, "network slice": 0.1}
  assert found == pytest.approx(expected)
  assert by_axis(exchanges) == {
    "fsdp": {"all-gather": 2 * 10**7, "all-reduce": 2 * 10**7},
    "slice": {"send": 10**6},
  }


def traced(mesh, function, *shapes, donate=()):
  jitted = jax.jit(function, donate_argnums=donate)
  return Program(
    name="toy",
    traced=jitted.trace(*shapes),
    mesh=mesh,
    held={"table": shapes},
    beside={},
    cache_bytes=0,
    donated=sum(map(bytes_of_a_chip, [shapes[i] for i in donate])),
    useful_flops=0.0,
    traced_flops=0.0,
    turns=1,
  )


class Refusing:
  """A traced program that its compiler finds too large."""

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
def test_refusal_of_the_compiler_is_read(mesh, monkeypatch, words):
  monkeypatch.setattr(Refusing, "message", f"RESOURCE_EXHAUSTED: {words}")
  found = needs(Program("toy", Refusing(), mesh, {}, {}, 0, 0, 0.0, 0.0, 1), CHIP)
  assert not found.fits and found.peak_bytes == round(17.46 * GIB)
  assert found.fastest_s == found.slowest_s == 0 and found.mfu(0.0, 1.0) == 0.0


def test_other_errors_of_the_compiler_are_not_taken_for_a_refusal(mesh, monkeypatch):
  monkeypatch.setattr(Refusing, "message", "INTERNAL: something else")
  with pytest.raises(ValueError, match="does not compile: INTERNAL: something else"):
    needs(Program("toy", Refusing(), mesh, {}, {}, 0, 0, 0.0, 0.0, 1), CHIP)


@pytest.fixture
def on_cpu(monkeypatch):
  """Programs lowered for this machine."""
  monkeypatch.setattr(compiled, "PLATFORM", "cpu")


def test_lost_donation_is_found(mesh, on_cpu):
  """A donated array without a result of its shape cannot be overwritten."""
  table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
  kept = needs(traced(mesh, lambda x: x + 1, table, donate=(0,)), CHIP)
  lost = needs(traced(mesh, lambda x: x[:10].sum(), table, donate=(0,)), CHIP)
  assert (kept.lost_donation_bytes, lost.lost_donation_bytes) == (0, 64 * 32 * 4)


def test_what_lies_beside_counts(mesh, on_cpu):
  table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P()))
  alone = traced(mesh, lambda x: x + 1, table)
  giant = jax.ShapeDtypeStruct((2**28,), jnp.float32, sharding=NamedSharding(mesh, P()))
  crowded = Program(**{**vars(alone), "beside": {"training": giant}})
  assert needs(alone, CHIP).fits and not needs(crowded, CHIP).fits
  assert needs(crowded, CHIP).held_bytes["training"] == GIB
  np.testing.assert_array_less(GIB, needs(crowded, CHIP).peak_bytes)
