"""The rows of a global batch that each process reads, and the global batch made from them.

A mesh follows the links between chips, so the devices of one process may hold any rows: on v5e:4x8 under fsdp=32, a
host of 2×2 chips holds rows 0, 1, 8 and 9 of 32. A process reads exactly the rows that its devices hold. Processes
whose devices share heads and hidden units hold, and read, the same rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spatial_vlm import sharding


class Shard(NamedTuple):
  """The share of one process in every global batch: some of the equal parts that the batch is cut into."""

  parts: tuple[int, ...] = (0,)
  """Numbers of the parts that this process reads, ascending."""
  count: int = 1
  """Parts of a batch."""

  def rows(self, batch_size: int) -> list[int]:
    """Returns the rows of a global batch that this process reads, ascending.

    Raises ValueError if the parts cannot be equal.
    """
    size, rest = divmod(batch_size, self.count)
    if rest or size < 1:
      raise ValueError(
        f"batch_size is {batch_size}; it must be a positive multiple of the {self.count} parts that processes read."
      )
    return [part * size + row for part in self.parts for row in range(size)]


def process_shard(mesh: Mesh, process: int | None = None) -> Shard:
  """Returns the rows that the devices of a process hold; by default of this process.

  The parts are as large as they can be, so that equal rows are equal shards whatever the mesh.
  """
  process = jax.process_index() if process is None else process
  count = sharding.axis_product(mesh, sharding.ROWS)
  held = NamedSharding(mesh, PartitionSpec(sharding.ROWS)).devices_indices_map((count,))
  parts = {
    part
    for device, (rows,) in held.items()
    if device.process_index == process
    for part in range(count)[rows]
  }
  for size in (size for size in range(count, 1, -1) if count % size == 0):
    starts = [part for part in sorted(parts) if part % size == 0]
    if parts == {start + i for start in starts for i in range(size)}:
      return Shard(tuple(start // size for start in starts), count // size)
  return Shard(tuple(sorted(parts)), count)


def check_rows(mesh: Mesh, name: str, rows: int) -> None:
  """Raises ValueError where several processes would have to hold unequal or repeated rows of a batch."""
  processes = {device.process_index for device in mesh.devices.flat}
  parts = sharding.axis_product(mesh, sharding.ROWS)
  if len(processes) > 1 and rows % parts:
    sizes = " × ".join(f"{axis} {mesh.shape[axis]}" for axis in sharding.ROWS)
    raise ValueError(
      f"{name} is {rows}; it must be a multiple of the {parts} parts that the mesh cuts it into ({sizes})"
    )


def make_global_batch(mesh: Mesh, batch: Any) -> Any:
  """Returns the whole batch as arrays on the mesh, from the rows (NumPy) that this process reads."""
  shard = process_shard(mesh)

  def put(leaf: np.ndarray) -> jax.Array:
    rows = len(leaf) * shard.count // len(shard.parts)
    own = shard.rows(rows)
    shape = jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype)

    def read(index: Any) -> np.ndarray:
      return leaf[local_rows(own, index[0], rows)]

    return jax.make_array_from_callback(shape.shape, sharding.batch_sharding(mesh, shape), read)

  return jax.tree.map(put, batch)


def own_rows(array: jax.Array) -> np.ndarray:
  """Returns the rows of an array that this process's devices hold, ascending and once each."""
  if array.is_fully_addressable:
    return np.asarray(array)
  parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
  return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def local_rows(own: Sequence[int], wanted: slice, rows: int) -> slice:
  """Returns where rows `wanted` of a global batch of `rows` stand among the rows that this process has read."""
  start, stop, _ = wanted.indices(rows)
  first = own.index(start)
  return slice(first, first + stop - start)
