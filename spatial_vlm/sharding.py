"""The mesh of four axes, and the shardings of parameters, train states and batches over it.

  slice   slices of a multi-slice pod, connected by the data-centre network: replicas of the parameters
  data    replicas of the parameters, each with its own rows
  fsdp    rows, and parameters sharded along their width, gathered layer by layer
  tensor  heads, hidden units and vocabulary

PartitionSpecs of parameters are in the table of `parameters.paths`. An axis that does not divide its dimension moves to
the largest remaining dimension it divides: 8 key-value heads on a tensor axis of 16 are sharded along the width
instead, and gathered where they are used. If there is no such dimension, or the axis shards rows, it is dropped.
Results are unchanged; less memory is saved.
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

from spatial_vlm.parameters.paths import parameter_row, path_name
from spatial_vlm.types import Device, Params, TrainState

P = PartitionSpec
AXES = ("slice", "data", "fsdp", "tensor")
ROWS = ("slice", "data", "fsdp")


def make_mesh(shape: Mapping[str, int], devices: Sequence[Device] | None = None) -> Mesh:
  """Returns a mesh with the axes AXES over `devices` (by default all).

  Axes are of type Auto: the compiler propagates shardings from parameters and batches.

  Args:
    shape: sizes of axes, 1 for axes it does not name; one of them may be −1 and takes the remaining devices.

  Raises:
    ValueError: names or sizes do not fit, or the size of `slice` is not the devices' number of slices.
  """
  devices = jax.devices() if devices is None else list(devices)
  grid = _grid(_sizes(shape, len(devices)), devices)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def reshape_mesh(mesh: Mesh, shape: Mapping[str, int]) -> Mesh:
  """Returns a mesh of another shape over the same devices in the same order; a program may use both.

  Raises:
    ValueError: as `make_mesh`.
  """
  sizes = _sizes(shape, mesh.size)
  return Mesh(mesh.devices.reshape(sizes), AXES, axis_types=mesh.axis_types)


def _sizes(shape: Mapping[str, int], count: int) -> list[int]:
  """Returns the sizes of all axes for `count` devices."""
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


def _grid(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
  """Returns the devices in the shape of the mesh; devices with direct links are neighbours on its last axes."""
  slices, *inside = sizes
  is_tpu = devices[0].platform == "tpu"  # other platforms do not number slices
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


def param_shardings(mesh: Mesh | AbstractMesh, params: Params) -> Params:
  """Returns the sharding of every parameter; `params` holds arrays or shapes.

  Raises:
    ValueError: a path does not match exactly one row of the table in `parameters.paths`.
  """

  def sharding(path, leaf):
    return _fit_parameter(mesh, parameter_row(path_name(path)).spec, leaf.shape)

  return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(mesh: Mesh | AbstractMesh, state: TrainState) -> TrainState:
  """Returns the sharding of every array of a train state (or of its shapes).

  A moment is sharded as its parameter; scales of rows and means over an axis are sharded as their parameter on the
  remaining axes. Counters, coefficients, placeholders and the step are replicated.
  """
  params = param_shardings(mesh, state.params)
  shape_and_spec = {
    path_name(path): (leaf.shape, sharding.spec)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(params), strict=True
    )
  }

  def optimizer_leaf(path, leaf):
    parts = path_name(path).split("/")
    if leaf.shape in ((), (1,)) or parts[-1] == "ns_coeffs":  # coefficients of Muon's polynomial
      return replicated(mesh)
    # …/FIELD/PARAMETER or, in eight bits, …/FIELD/PARAMETER/codes and …/scale
    for start, stop in itertools.product(range(1, len(parts)), (len(parts), -1)):
      shape, spec = shape_and_spec.get("/".join(parts[start:stop]), ((), P()))
      axes = list(itertools.zip_longest(shape, spec))
      if leaf.ndim < len(shape):
        del axes[_reduced_axis(parts[start - 1], shape)]
      if leaf.shape == tuple(size for size, _ in axes):
        return _fit(mesh, P(*(axis for _, axis in axes)), leaf.shape)
    raise ValueError(
      f"opt_state/{path_name(path)} {leaf.shape} belongs to no parameter of its shape."
    )

  return state.replace(
    step=replicated(mesh),
    params=params,
    opt_state=jax.tree_util.tree_map_with_path(optimizer_leaf, state.opt_state),
  )


def _reduced_axis(field: str, shape: tuple[int, ...]) -> int:
  """Returns the axis of a parameter that a field of the optimizer state lacks.

  Adafactor's rows lack the largest axis and its columns the second largest, as in optax; scales of 8-bit moments lack
  the last.
  """
  *_, second, largest = np.argsort(shape)
  return {"v_row": largest, "v_col": second}.get(field, len(shape) - 1)


def batch_sharding(mesh: Mesh | AbstractMesh, batch: Any) -> Any:
  """Returns the sharding of every array of a batch, prompts or rollout (or of its shapes): rows over ROWS."""
  return jax.tree.map(lambda leaf: _fit(mesh, P(ROWS) if leaf.shape else P(), leaf.shape), batch)


def constrain_rows(batch: Any) -> Any:
  """Constrains the rows of the arrays to the mesh of `jax.set_mesh`, if one is set; for use inside jit."""
  mesh = jax.sharding.get_abstract_mesh()
  return (
    batch if mesh.empty else jax.lax.with_sharding_constraint(batch, batch_sharding(mesh, batch))
  )


def row_devices(rows: int) -> int:
  """Returns how many devices of the mesh in use share so many rows."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else axis_product(mesh, divisible_axes(ROWS, mesh, rows))


def copies_for_rows(groups: int, group_size: int) -> int:
  """Returns how many copies of each group the devices of the mesh in use share as they share the groups' rows.

  With them, each device computes the groups of its own rows: of 4 groups with 16 rows each, 32 devices share 8 copies.
  Without, every device would compute all 4. The number divides `group_size`.
  """
  devices = row_devices(groups * group_size)
  return devices // math.gcd(groups, devices)


def constrain_replicated(arrays: Any) -> Any:
  """Constrains the arrays to be whole on every device of the mesh of `jax.set_mesh`, if one is set; inside jit."""
  mesh = jax.sharding.get_abstract_mesh()
  return arrays if mesh.empty else jax.lax.with_sharding_constraint(arrays, replicated(mesh))


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """Returns the shapes and types of `shapes` (or of arrays) as `jax.ShapeDtypeStruct`s with these shardings."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
    shapes,
    shardings,
  )


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Returns the sharding that puts the whole array on every device of the mesh."""
  return NamedSharding(mesh, P())


def _fit(mesh: Mesh | AbstractMesh, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
  """Returns `spec` on `mesh`, without the axes that do not divide their dimension."""
  kept = [
    divisible_axes(_axes(entry), mesh, size) for entry, size in zip(spec, shape, strict=False)
  ]
  return _named(mesh, kept)


def _fit_parameter(
  mesh: Mesh | AbstractMesh, spec: PartitionSpec, shape: tuple[int, ...]
) -> NamedSharding:
  """Returns `spec` of the last dimensions on `mesh`.

  An axis that does not divide its dimension moves to the largest remaining dimension it divides, or is dropped.
  """
  if len(spec) > len(shape):
    raise ValueError(f"spec {spec} has more dimensions than a parameter of shape {shape}.")
  leading, sizes = len(shape) - len(spec), shape[len(shape) - len(spec) :]
  kept = [divisible_axes(_axes(entry), mesh, size) for entry, size in zip(spec, sizes, strict=True)]
  wanted = {axis for entry in spec for axis in _axes(entry)}
  for axis in sorted(wanted.difference(*kept)):
    left = [size // axis_product(mesh, axes) for size, axes in zip(sizes, kept, strict=True)]
    if room := [i for i, size in enumerate(left) if size % mesh.shape[axis] == 0]:
      largest = max(room, key=left.__getitem__)
      kept[largest] = (*kept[largest], axis)
  return _named(mesh, [()] * leading + kept)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else tuple(entry or ())


def axis_product(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
  """Returns the number of shards of a dimension over these axes."""
  return math.prod(mesh.shape[axis] for axis in axes)


def _named(mesh: Mesh | AbstractMesh, axes: Sequence[tuple[str, ...]]) -> NamedSharding:
  """Returns the sharding without axes of size 1, as the compiler writes it, so that equal shardings compare equal."""
  sharded = [tuple(axis for axis in of_dim if mesh.shape[axis] > 1) for of_dim in axes]
  entries = [of_dim[0] if len(of_dim) == 1 else of_dim or None for of_dim in sharded]
  while entries and entries[-1] is None:
    entries.pop()
  return NamedSharding(mesh, P(*entries))


def divisible_axes(axes: tuple[str, ...], mesh: Mesh | AbstractMesh, size: int) -> tuple[str, ...]:
  """Returns the longest prefix of `axes` whose product divides `size`."""
  while size % axis_product(mesh, axes):
    axes = axes[:-1]
  return axes


def with_row_shardings(mesh: Mesh, shapes: Any) -> Any:
  """Returns shapes of a batch, prompts or rollout with their rows sharded over the mesh."""
  return with_shardings(shapes, batch_sharding(mesh, shapes))


def with_param_shardings(mesh: Mesh, shapes: Params) -> Params:
  """Returns shapes of parameters with their shardings over the mesh."""
  return with_shardings(shapes, param_shardings(mesh, shapes))
