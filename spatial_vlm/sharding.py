"""Where arrays live: one mesh of four axes, one table from parameter paths to PartitionSpecs.

  slice   slices of a multi-slice pod, joined by the data-centre network: whole replicas of the parameters
  data    whole replicas of the parameters, each with rows of its own
  fsdp    rows too, and parameters cut along their width, gathered layer by layer
  tensor  heads, hidden units and vocabulary

An axis that does not divide the dimension it should cut is put on the dimension of the array that is left largest
and that it divides: 8 key-value heads on a tensor axis of 16 are cut along the width instead, and put together where
they are used. Where it divides none, or cuts rows, it is dropped for that array; the result is the same, only less is
saved.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spatial_vlm.parameters.paths import partition_spec, path_name
from spatial_vlm.types import Params, TrainState

P = PartitionSpec
AXES = ("slice", "data", "fsdp", "tensor")
ROWS = ("slice", "data", "fsdp")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Mesh with the axes AXES over `devices` (by default all).

  `shape` gives axes their sizes, 1 where it names none; one of them may be −1 and takes the devices that the others
  leave. Axes are of type Auto: the compiler propagates shardings from parameters and batches. Raises ValueError where
  names or sizes do not fit, or the axis `slice` is not the number of slices that the devices form.
  """
  devices = jax.devices() if devices is None else list(devices)
  grid = _grid(_sizes(shape, len(devices)), devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def reshape_mesh(mesh: Mesh, shape: Mapping[str, int]) -> Mesh:
  """A mesh of another shape over the same devices in the same order: one program may have arrays on both.

  Raises ValueError as `make_mesh` does.
  """
  sizes = _sizes(shape, mesh.size)
  return Mesh(mesh.devices.reshape(sizes), AXES, axis_types=mesh.axis_types)


def _sizes(shape: Mapping[str, int], count: int) -> list[int]:
  """Of all axes, for so many devices."""
  if unknown := sorted(set(shape) - set(AXES)):
    raise ValueError(f"the mesh names {', '.join(unknown)}; its axes are {', '.join(AXES)}.")
  sizes = [shape.get(axis, 1) for axis in AXES]
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(
      f"mesh sizes are {dict(shape)}; give positive sizes, and −1 to at most one axis."
    )
  known = math.prod(size for size in sizes if size != -1)
  sizes = [count // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != count:
    raise ValueError(
      f"mesh {dict(shape)} does not cover the {count} devices; the sizes must multiply to {count} "
      "(−1 for one axis takes the rest)."
    )
  return sizes


def _grid(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
  """The devices in the shape of the mesh, neighbours on the wires being neighbours on its last axes."""
  slices, *inside = sizes
  is_tpu = devices[0].platform == "tpu"  # elsewhere a slice is whatever the machines make of it
  found = Counter(getattr(device, "slice_index", 0) for device in devices) if is_tpu else {}
  if len(found) > 1 and len(found) != slices:
    raise ValueError(
      f"mesh.slice is {slices}, but the {len(devices)} devices form {len(found)} slices; set it to {len(found)}."
    )
  if len(found) > 1:
    return mesh_utils.create_hybrid_device_mesh(
      (1, *inside), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
  return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def param_shardings(mesh: Mesh, params: Params) -> Params:
  """Sharding of every parameter; `params` holds arrays or shapes. Each path must match exactly one row of
  PARAMETERS, else ValueError names it."""

  def sharding(path, leaf):
    spec = partition_spec(path_name(path))
    return _fit_parameter(mesh, spec, leaf.shape)

  return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
  """Sharding of every array of a train state (or of its shapes).

  The optimizer's moments lie as their parameter does; scales of rows and means over an axis, as it does on the axes
  that are left; counters, coefficients, placeholders and the step, on every device.
  """
  params = param_shardings(mesh, state.params)
  of_path = {
    path_name(path): (leaf.shape, sharding.spec)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(params), strict=True
    )
  }

  def optimizer_leaf(path, leaf):
    parts = path_name(path).split("/")
    if leaf.shape in ((), (1,)) or parts[-1] == "ns_coeffs":  # of Muon's polynomial
      return replicated(mesh)
    # …/FIELD/PARAMETER or, in eight bits, …/FIELD/PARAMETER/codes and …/scale
    for start, stop in itertools.product(range(1, len(parts)), (len(parts), -1)):
      shape, spec = of_path.get("/".join(parts[start:stop]), ((), P()))
      axes = list(itertools.zip_longest(shape, spec))
      if leaf.ndim < len(shape):
        del axes[_reduced_axis(parts[start - 1], shape)]
      if leaf.shape == tuple(size for size, _ in axes):
        return _fit(mesh, P(*(axis for _, axis in axes)), leaf.shape)
    raise ValueError(
      f"opt_state/{path_name(path)} {leaf.shape} belongs to no parameter of its shape."
    )

  return TrainState(
    step=replicated(mesh),
    params=params,
    opt_state=jax.tree_util.tree_map_with_path(optimizer_leaf, state.opt_state),
  )


def _reduced_axis(field: str, shape: tuple[int, ...]) -> int:
  """The axis of a parameter that a field of the optimizer state lacks: Adafactor's rows the largest and its columns the
  second largest, as optax chooses them; scales of moments in eight bits the last."""
  *_, second, largest = np.argsort(shape)
  return {"v_row": largest, "v_col": second}.get(field, len(shape) - 1)


def batch_sharding(mesh: Mesh | AbstractMesh, batch: Any) -> Any:
  """Sharding of every array of a batch, prompts or rollout (or of its shapes): rows over data × fsdp."""
  return jax.tree.map(lambda leaf: _fit(mesh, P(ROWS) if leaf.shape else P(), leaf.shape), batch)


def constrain_rows(batch: Any) -> Any:
  """The arrays, their rows cut over the mesh that `jax.set_mesh` has set, if any: within a program."""
  mesh = jax.sharding.get_abstract_mesh()
  return (
    batch if mesh.empty else jax.lax.with_sharding_constraint(batch, batch_sharding(mesh, batch))
  )


def process_block(mesh: Mesh) -> tuple[int, int]:
  """(index, count): of the rows of a batch, cut into `count` equal blocks, this process's devices hold one.

  Processes whose devices share heads and hidden units hold, and read, the same rows. Raises ValueError for a mesh that
  scatters a process's rows over the batch.
  """
  parts = axis_product(mesh, ROWS)
  where = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((parts,))
  held = sorted({row for (rows,) in where.values() for row in range(parts)[rows]})
  first, size = held[0], len(held)
  if held != [*range(first, first + size)] or first % size or parts % size:
    raise ValueError(
      f"mesh {dict(mesh.shape)} gives process {jax.process_index()} the parts {held} of {parts} of a batch; it can "
      "read only a block: choose axes slice, data and fsdp that the processes cut evenly"
    )
  return first // size, parts // size


def make_global_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows of a batch (NumPy, its `process_block`) as arrays of the whole batch on the mesh; None leaves
  stay."""
  _, count = process_block(mesh)

  def put(leaf):
    shape = (leaf.shape[0] * count, *leaf.shape[1:])
    return jax.make_array_from_process_local_data(_fit(mesh, P(ROWS), shape), leaf, shape)

  return jax.tree.map(put, batch)


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """A tree of `jax.ShapeDtypeStruct`s with the shapes and types of `shapes` (or of arrays), and these shardings."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    shapes,
    shardings,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device of the mesh."""
  return NamedSharding(mesh, P())


def _fit(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
  """`spec` on `mesh`, without the axes that do not divide their dimension."""
  kept = [
    divisible_axes(_axes(entry), mesh, size) for entry, size in zip(spec, shape, strict=False)
  ]
  return _named(mesh, kept)


def _fit_parameter(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
  """`spec` of the last dimensions on `mesh`; an axis that does not divide its dimension cuts another one of them.

  It goes where most is left to cut; where it divides nothing it is dropped.
  """
  if len(spec) > len(shape):
    raise ValueError(f"spec {spec} has more dimensions than a parameter of shape {shape}.")
  leading, sizes = len(shape) - len(spec), shape[len(shape) - len(spec) :]
  kept = [divisible_axes(_axes(entry), mesh, size) for entry, size in zip(spec, sizes, strict=True)]
  wanted = {axis for entry in spec for axis in _axes(entry)}
  for axis in sorted(wanted.difference(*kept)):
    left = [size // axis_product(mesh, axes) for size, axes in zip(sizes, kept, strict=True)]
    if room := [i for i, size in enumerate(left) if size % mesh.shape[axis] == 0]:
      place = max(room, key=left.__getitem__)
      kept[place] = (*kept[place], axis)
  return _named(mesh, [()] * leading + kept)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def axis_product(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
  """Parts that the axes cut a dimension into."""
  return math.prod(mesh.shape[axis] for axis in axes)


def _named(mesh: Mesh, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
  """Without axes of one device, which cut nothing: so does the compiler write it, and equal shardings compare equal."""
  cutting = [tuple(axis for axis in of_dim if mesh.shape[axis] > 1) for of_dim in axes]
  entries = [of_dim[0] if len(of_dim) == 1 else of_dim or None for of_dim in cutting]
  while entries and entries[-1] is None:
    entries.pop()
  return NamedSharding(mesh, P(*entries))


def divisible_axes(axes: tuple[str, ...], mesh: Mesh | AbstractMesh, size: int) -> tuple[str, ...]:
  """The axes, without the last ones if together they do not divide `size`."""
  while size % axis_product(mesh, axes):
    axes = axes[:-1]
  return axes


def with_param_shardings(mesh: Mesh, shapes: Params) -> Params:
  """Shapes of parameters, laid out over the mesh."""
  return with_shardings(shapes, param_shardings(mesh, shapes))
