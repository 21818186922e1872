"""What is read from the HLO of a compiled program: against programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from spatial_vlm import sharding
from spatial_vlm.planning.hlo import Hlo, axes_of, is_loop_of, replica_groups, shape_bytes


@pytest.fixture(scope="module")
def mesh():
  return sharding.make_mesh({"fsdp": 4, "tensor": 2})


def compiled(mesh, function, *arguments):
  """HLO of a function; each argument is (shape, spec)."""
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    for shape, spec in arguments
  ]
  return jax.jit(function).lower(*shapes).compile().as_text()


def test_exchange_in_a_loop_counts_with_its_turns(mesh):
  """Five products over a width that is cut: each adds up 16 × 8 numbers over four devices."""

  def products(x, kernels):
    return jax.lax.scan(lambda total, w: (total + x @ w, None), jnp.zeros((16, 8)), kernels)[0]

  text = compiled(mesh, products, ((16, 32), P(None, "fsdp")), ((5, 32, 8), P(None, "fsdp")))
  [exchange] = Hlo(text).collectives(mesh.shape)
  assert (exchange.kind, exchange.axes, exchange.runs) == ("all-reduce", ("fsdp",), 5)
  assert exchange.bytes == 2 * 16 * 8 * 4 * 3 / 4
  assert exchange.total_bytes == 5 * exchange.bytes


def test_exchange_outside_of_a_loop_counts_once(mesh):
  """A table is gathered over the axis `tensor`, then used in every turn."""

  def gathered(x, table):
    def on_each(x, table):
      table = jax.lax.all_gather(table, "tensor", tiled=True)
      return jax.lax.scan(lambda x, _: (jnp.sin(x @ table), None), x, None, length=7)[0]

    rows = P("fsdp")
    return jax.shard_map(
      on_each, mesh=mesh, in_specs=(rows, P("tensor")), out_specs=rows, check_vma=False
    )(x, table)

  text = compiled(mesh, gathered, ((16, 8), P("fsdp")), ((8, 8), P("tensor")))
  [exchange] = Hlo(text).collectives(mesh.shape)
  assert (exchange.kind, exchange.axes, exchange.runs) == ("all-gather", ("tensor",), 1)
  assert exchange.bytes == 8 * 8 * 4 / 2  # each of two devices sends its half to the other


def test_loop_whose_end_is_data_takes_the_turns_it_is_told(mesh):
  def answers(x, w):
    with jax.named_scope("tokens"):
      return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: jnp.exp(x @ w), x)

  text = compiled(mesh, answers, ((8, 16), P(None, "fsdp")), ((16, 16), P("fsdp")))
  told = Hlo(text, {"tokens": 300}).collectives(mesh.shape)
  inside = [exchange for exchange in told if exchange.stands_in("tokens") and exchange.runs == 300]
  assert inside and not any(exchange.stands_in("chunks") for exchange in told)
  assert {exchange.runs for exchange in Hlo(text).collectives(mesh.shape)} == {1}


def test_memory_traffic_of_one_operation_is_its_operands_and_result(mesh):
  text = compiled(mesh, lambda x, y: jnp.sin(x) + y, ((1024,), P()), ((1024,), P()))
  assert Hlo(text).memory_bytes() == 3 * 1024 * 4


def test_loop_over_a_stack_reads_a_layer_in_each_turn(mesh):
  """Eight layers of 64 × 64: a slice is read, written and read again, the whole stack never."""

  def layers(x, stack):
    return jax.lax.scan(lambda x, w: (jnp.sin(x) @ w, None), x, stack)[0]

  text = compiled(mesh, layers, ((4, 64), P()), ((8, 64, 64), P()))
  stack = 8 * 64 * 64 * 4
  assert stack <= Hlo(text).memory_bytes() < 6 * stack


@pytest.mark.parametrize(
  ("text", "groups"),
  [
    ("replica_groups={{0,1},{2,3}}, use", [[0, 1], [2, 3]]),
    ("replica_groups={{0,1,2,3}}, use", [[0, 1, 2, 3]]),
    ("replica_groups={}, use", [[0, 1, 2, 3]]),
    ("replica_groups=[2,2]<=[4], use", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), use", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, use", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, use", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'b','a'}, use", [[0, 2, 1, 3]]),
    ("source_target_pairs={{0,1},{1,0}}, use", [[0, 1], [1, 0]]),
  ],
)
def test_all_notations_of_groups(text, groups):
  assert replica_groups(f"channel_id=1, {text}", 4).tolist() == groups


def test_groups_are_lines_of_the_mesh():
  mesh = {"slice": 1, "data": 2, "fsdp": 2, "tensor": 2}
  assert axes_of(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), mesh) == ("tensor",)
  assert axes_of(np.array([[0, 2, 4, 6], [1, 3, 5, 7]]), mesh) == ("data", "fsdp")
  assert axes_of(np.zeros((0, 1), int), mesh) == ("?",)


def test_bytes_of_shapes():
  assert shape_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[]{:T(128)})") == 68
  assert shape_bytes("(bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, f32[])", hbm=True) == 4
  assert shape_bytes("f8e4m3fn[10]") == 10
  assert shape_bytes("s4[3]") == 2
  assert shape_bytes("token[]") == 0


def test_scopes_survive_differentiation():
  assert is_loop_of("chunks", "jit(f)/transpose(jvp(chunks))/while")
  assert not is_loop_of("chunks", "jit(f)/chunks/while/body/while")  # one inside of it
  assert not is_loop_of("chunks", "jit(f)/my_chunks/while")


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    Hlo("HloModule x")
