"""Where arrays live: one mesh of three axes, one table from parameter paths to PartitionSpecs.

  data    whole replicas of the parameters, each with rows of its own (between TPU slices)
  fsdp    rows too, and parameters cut along their width, gathered layer by layer
  tensor  heads, hidden units and vocabulary

An axis that does not divide a dimension of an array is dropped for that array (of several axes on one dimension,
from the last); the result is the same, only less is saved. So 8 key-value heads stay whole on a tensor axis of 16.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from spatial_vlm.optim import as_matrix
from spatial_vlm.types import Params, TrainState

P = PartitionSpec
AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")


def make_mesh(shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Mesh with the axes (data, fsdp, tensor) over `devices` (by default all).

  `shape` gives each axis its size; one of them may be −1 and takes the devices that the others leave. Axes are of
  type Auto: the compiler propagates shardings from parameters and batches. Raises ValueError where names or sizes
  do not fit.
  """
  devices = jax.devices() if devices is None else list(devices)
  if set(shape) != set(AXES):
    raise ValueError(f"the mesh names {sorted(shape)}; it needs exactly {', '.join(AXES)}.")
  sizes = [shape[axis] for axis in AXES]
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(
      f"mesh sizes are {dict(shape)}; give positive sizes, and −1 to at most one axis."
    )
  known = math.prod(size for size in sizes if size != -1)
  sizes = [len(devices) // known if size == -1 else size for size in sizes]
  if math.prod(sizes) != len(devices):
    raise ValueError(
      f"mesh {dict(shape)} does not cover the {len(devices)} devices; the sizes must multiply to {len(devices)} "
      "(−1 for one axis takes the rest)."
    )
  grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


PARAMETERS: tuple[tuple[str, PartitionSpec], ...] = (
  (r"(text/embed|head)/embedding", P("tensor", "fsdp")),  # V D
  (r".*/attention/[qkv]_proj/kernel", P("fsdp", "tensor", None)),  # D N H
  (r".*/attention/(o|out)_proj/kernel", P("tensor", None, "fsdp")),  # N H D
  (r"text/layers/mlp/(gate|up)_proj/kernel", P("fsdp", "tensor")),  # D F
  (r"text/layers/mlp/down_proj/kernel", P("tensor", "fsdp")),  # F D
  (r"vision/(blocks/mlp|merger|deepstack_mergers)/fc1/kernel", P("fsdp", "tensor")),  # D F
  (r"vision/(blocks/mlp|merger|deepstack_mergers)/fc2/kernel", P("tensor", "fsdp")),  # F D
  (r"vision/patch_embed/(proj/kernel|positions/embedding)", P(None, "fsdp")),
  (r"(text|vision)/.*/(bias|scale)", P()),
)
"""Path of a parameter (regular expression, in full) -> spec of its last dimensions; a leading layer axis is never
cut. Heads are cut whole: their width H stays together."""


def param_shardings(mesh: Mesh, params: Params) -> Params:
  """Sharding of every parameter; `params` holds arrays or shapes. Each path must match exactly one row of
  PARAMETERS, else ValueError names it."""

  def sharding(path, leaf):
    spec = _lookup(_name(path))
    leading = (None,) * (leaf.ndim - len(spec))
    return _fit(mesh, P(*leading, *spec), leaf.shape)

  return jax.tree_util.tree_map_with_path(sharding, params)


def state_shardings(mesh: Mesh, state: TrainState) -> TrainState:
  """Sharding of every array of a train state (or of its shapes).

  The optimizer's moments lie as their parameter does; its counters and coefficients, and the step, on every device.
  """
  params = param_shardings(mesh, state.params)
  of_path = {
    _name(path): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(params), strict=True
    )
  }

  def optimizer_leaf(path, leaf):
    if not leaf.shape or _name(path).endswith("/ns_coeffs"):  # of Muon's polynomial
      return replicated(mesh)
    parts = _name(path).split("/")
    for start in range(len(parts)):
      shape, sharding = of_path.get("/".join(parts[start:]), (None, None))
      if shape == leaf.shape:
        return sharding
    raise ValueError(f"opt_state/{_name(path)} {leaf.shape} belongs to no parameter of its shape.")

  return TrainState(
    step=replicated(mesh),
    params=params,
    opt_state=jax.tree_util.tree_map_with_path(optimizer_leaf, state.opt_state),
  )


def batch_sharding(mesh: Mesh, batch: Any) -> Any:
  """Sharding of every array of a batch, prompts or rollout (or of its shapes): rows over data × fsdp."""
  return jax.tree.map(lambda leaf: _fit(mesh, P(ROWS) if leaf.shape else P(), leaf.shape), batch)


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows of a batch (NumPy) as arrays of the whole batch on the mesh; None leaves stay."""
  count = jax.process_count()

  def put(leaf):
    shape = (leaf.shape[0] * count, *leaf.shape[1:])
    return jax.make_array_from_process_local_data(_fit(mesh, P(ROWS), shape), leaf, shape)

  return jax.tree.map(put, batch)


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device of the mesh."""
  return NamedSharding(mesh, P())


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _lookup(name: str) -> PartitionSpec:
  """The row of the table; a low-rank pair (`model.lora`) and a kernel in int8 with its scales (`model.int8`) lie as
  the kernel does on the axes they share."""
  owner, _, leaf = name.rpartition("/")
  if leaf not in ("lora_a", "lora_b", "lora_scale", "kernel_int8", "kernel_scale"):
    return _row(name)
  kernel = f"{owner}/kernel"
  _, inputs, outputs = as_matrix(kernel, _row(kernel))
  specs = {
    "lora_a": P(*inputs, None),
    "lora_b": P(None, *outputs),
    "lora_scale": P(),
    "kernel_int8": _row(kernel),
    "kernel_scale": P(*(None for _ in inputs), *outputs),
  }
  return specs[leaf]


def _row(name: str) -> PartitionSpec:
  specs = [spec for pattern, spec in PARAMETERS if re.fullmatch(pattern, name)]
  if len(specs) != 1:
    raise ValueError(
      f"parameter {name!r} matches {len(specs)} rows of sharding.PARAMETERS; it must match exactly one. "
      "Add or narrow a row."
    )
  return specs[0]


def _fit(mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]) -> NamedSharding:
  """`spec` on `mesh`, without the axes that do not divide their dimension."""
  if len(spec) > len(shape):
    raise ValueError(f"spec {spec} has more dimensions than an array of shape {shape}.")
  axes = [_fit_axes(mesh, axes, size) for axes, size in zip(spec, shape, strict=False)]
  while axes and axes[-1] is None:
    axes.pop()
  return NamedSharding(mesh, P(*axes))


def _fit_axes(
  mesh: Mesh, axes: str | tuple[str, ...] | None, size: int
) -> tuple[str, ...] | str | None:
  kept = dividing((axes,) if isinstance(axes, str) else tuple(axes or ()), mesh, size)
  return kept[0] if len(kept) == 1 else kept or None


def dividing(axes: tuple[str, ...], mesh: Mesh | AbstractMesh, size: int) -> tuple[str, ...]:
  """The axes, without the last ones if together they do not divide `size`."""
  while size % math.prod(mesh.shape[axis] for axis in axes):
    axes = axes[:-1]
  return axes
