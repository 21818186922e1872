"""Which rows of a batch each process reads, and that they arrive where its devices hold them."""

import itertools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatial_vlm import sharding
from spatial_vlm.process_rows import (
  Shard,
  check_rows,
  local_rows,
  make_global_batch,
  process_shard,
)
from spatial_vlm.types import Batch


class Chip:
  """A device as a mesh sees it."""

  platform = "fake"
  device_kind = "fake"

  def __init__(self, id, process_index):
    self.id, self.process_index = id, process_index


def mesh_of(shape, processes):
  """A mesh over devices whose processes are given in the order of the mesh."""
  devices = [Chip(id, process) for id, process in enumerate(processes)]
  grid = np.array(devices, object).reshape([shape.get(axis, 1) for axis in sharding.AXES])
  return jax.sharding.Mesh(grid, sharding.AXES)


@pytest.mark.parametrize(
  ("shape", "processes", "shards"),
  [
    ({"data": 8}, [0, 0, 0, 0, 1, 1, 1, 1], [Shard((0,), 2), Shard((1,), 2)]),
    ({"data": 2, "tensor": 4}, [0, 0, 0, 0, 1, 1, 1, 1], [Shard((0,), 2), Shard((1,), 2)]),
    ({"data": 8}, [0, 0, 1, 1, 0, 0, 1, 1], [Shard((0, 2), 4), Shard((1, 3), 4)]),
    ({"fsdp": 8}, [0, 1, 1, 0, 0, 1, 1, 0], [Shard((0, 3, 4, 7), 8), Shard((1, 2, 5, 6), 8)]),
    ({"tensor": 8}, [0, 0, 0, 0, 1, 1, 1, 1], [Shard(), Shard()]),  # both hold all rows
    ({"data": 2, "tensor": 4}, [0, 0, 1, 1, 0, 0, 1, 1], [Shard(), Shard()]),
  ],
)
def test_a_process_reads_the_rows_of_its_devices(shape, processes, shards):
  mesh = mesh_of(shape, processes)
  assert [process_shard(mesh, process) for process in (0, 1)] == shards


def test_rows_of_a_shard():
  assert Shard((1, 3), 4).rows(16) == [4, 5, 6, 7, 12, 13, 14, 15]
  assert Shard().rows(3) == [0, 1, 2]
  with pytest.raises(ValueError, match="batch_size is 6; it must be a positive multiple of the 4"):
    Shard((1, 3), 4).rows(6)
  with pytest.raises(ValueError, match="batch_size is 0"):
    Shard().rows(0)


def test_rows_that_do_not_divide_over_several_processes_are_refused():
  mesh = mesh_of({"data": 2, "fsdp": 4}, [0, 0, 0, 0, 1, 1, 1, 1])
  check_rows(mesh, "batch_size", 16)
  with pytest.raises(ValueError, match=r"batch_size is 12; .* 8 parts .* data 2 × fsdp 4\)"):
    check_rows(mesh, "batch_size", 12)
  check_rows(mesh_of({"data": 8}, [0] * 8), "batch_size", 12)  # one process holds all of them


def power_of_two_meshes(chips, slices):
  sizes = [2**i for i in range(chips.bit_length())]
  for data, fsdp, tensor in itertools.product(sizes, repeat=3):
    if data * fsdp * tensor == chips:
      yield {"slice": slices, "data": data, "fsdp": fsdp, "tensor": tensor}


def check_every_process(mesh, per_part=2):
  """Asserts that what each process reads is what each of its devices holds, and nothing else."""
  rows = sharding.axis_product(mesh, sharding.ROWS) * per_part
  held = NamedSharding(mesh, PartitionSpec(sharding.ROWS)).devices_indices_map((rows,))
  for process in {device.process_index for device in mesh.devices.flat}:
    own = process_shard(mesh, process).rows(rows)
    mine = {d: wanted for d, (wanted,) in held.items() if d.process_index == process}
    assert set(own) == {row for wanted in mine.values() for row in range(rows)[wanted]}
    assert own == sorted(set(own))
    for wanted in mine.values():
      np.testing.assert_array_equal(
        np.array(own)[local_rows(own, wanted, rows)], np.arange(rows)[wanted]
      )
  copies = mesh.shape["tensor"]
  counts = np.bincount([row for (wanted,) in held.values() for row in range(rows)[wanted]])
  assert (counts == copies).all(), "every row once per replica"


TOPOLOGIES = (
  *("v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8"),
  *("v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8"),
  *("v5p:2x2x1", "v5p:2x2x2", "v5p:2x2x4", "v5p:2x4x4", "v5p:4x4x4"),
  *("v4:2x2x1", "v4:2x2x4", "v4:4x4x4", "tpu7x:2x2x1", "tpu7x:2x2x4", "tpu7x:2x4x4"),
)


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_topology_serves_every_mesh(topology, slices):
  """For TPU hosts as libtpu lays them out, and every mesh of powers of two."""
  pytest.importorskip("libtpu")
  from spatial_vlm.planning.chips import topology_devices

  _, devices = topology_devices(topology, slices)
  for shape in power_of_two_meshes(len(devices) // slices, slices):
    check_every_process(sharding.make_mesh(shape, devices))


def test_a_global_batch_keeps_values_and_missing_images():
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  tokens = np.arange(24, dtype=np.int32).reshape(8, 3)
  batch = Batch(
    tokens=tokens, segments=tokens, targets=tokens > 0, positions=np.zeros((8, 3, 3)), vision=None
  )
  placed = make_global_batch(mesh, batch)
  assert placed.vision is None
  np.testing.assert_array_equal(placed.tokens, tokens)
  assert placed.tokens.addressable_shards[0].data.shape == (2, 3)


def test_a_row_alone_is_on_all_devices():
  mesh = sharding.make_mesh({"data": 8})
  placed = make_global_batch(mesh, np.ones((1, 3), np.float32))
  assert placed.shape == (1, 3) and placed.is_fully_replicated
