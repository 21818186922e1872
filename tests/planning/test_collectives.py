"""Collectives of compiled programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from spatial_vlm.planning.collectives import find_collectives, replica_groups, spanned_axes
from spatial_vlm.planning.hlo import Hlo


def test_collective_in_a_loop_counts_once_per_trip(hlo_mesh, hlo_text):
  """Five products over a sharded width: each adds up 16 × 8 numbers over four devices."""

  def products(x, kernels):
    return jax.lax.scan(lambda total, w: (total + x @ w, None), jnp.zeros((16, 8)), kernels)[0]

  text = hlo_text(products, ((16, 32), P(None, "fsdp")), ((5, 32, 8), P(None, "fsdp")))
  [found] = find_collectives(Hlo(text), hlo_mesh.shape)
  assert (found.kind, found.axes, found.runs) == ("all-reduce", ("fsdp",), 5)
  assert found.bytes == 2 * 16 * 8 * 4 * 3 / 4
  assert found.total_bytes == 5 * found.bytes


def test_collective_outside_a_loop_counts_once(hlo_mesh, hlo_text):
  """A table is gathered over the axis `tensor`, then used in every trip."""

  def gathered(x, table):
    def on_each(x, table):
      table = jax.lax.all_gather(table, "tensor", tiled=True)
      return jax.lax.scan(lambda x, _: (jnp.sin(x @ table), None), x, None, length=7)[0]

    rows = P("fsdp")
    return jax.shard_map(
      on_each, mesh=hlo_mesh, in_specs=(rows, P("tensor")), out_specs=rows, check_vma=False
    )(x, table)

  text = hlo_text(gathered, ((16, 8), P("fsdp")), ((8, 8), P("tensor")))
  [found] = find_collectives(Hlo(text), hlo_mesh.shape)
  assert (found.kind, found.axes, found.runs) == ("all-gather", ("tensor",), 1)
  assert found.bytes == 8 * 8 * 4 / 2  # each of two devices sends its half to the other


def test_loop_that_ends_by_data_takes_the_given_trip_count(hlo_mesh, hlo_text):
  def answers(x, w):
    with jax.named_scope("tokens"):
      return jax.lax.while_loop(lambda x: jnp.sum(x) < 1e6, lambda x: jnp.exp(x @ w), x)

  text = hlo_text(answers, ((8, 16), P(None, "fsdp")), ((16, 16), P("fsdp")))
  found = find_collectives(Hlo(text, {"tokens": 300}), hlo_mesh.shape)
  inside = [collective for collective in found if collective.is_inside("tokens")]
  assert any(collective.runs == 300 for collective in inside)
  assert not any(collective.is_inside("chunks") for collective in found)
  unknown = find_collectives(Hlo(text), hlo_mesh.shape)
  assert {collective.runs for collective in unknown} == {1}


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
  assert spanned_axes(np.array([[0, 1], [2, 3], [4, 5], [6, 7]]), mesh) == ("tensor",)
  assert spanned_axes(np.array([[0, 2, 4, 6], [1, 3, 5, 7]]), mesh) == ("data", "fsdp")
  assert spanned_axes(np.zeros((0, 1), int), mesh) == ("?",)
