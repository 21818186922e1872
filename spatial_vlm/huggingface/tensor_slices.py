"""Maps slices of parameters to rows and columns of the tensors in the files."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spatial_vlm.huggingface.tensor_table import Tensor

Index = tuple[slice, ...]
"""Part of an array, as in `Sharding.devices_indices_map`: slices with steps of 1."""


class Box(NamedTuple):
  """A part of a parameter as layers, rows and columns of its tensors in the files."""

  shape: tuple[int, ...]
  """Shape of the part."""
  layers: slice
  rows: Int[np.ndarray, "rows"]
  columns: Int[np.ndarray, "columns"]
  transposed: bool
  """Whether the parameter has columns before rows."""

  def as_matrices(self, part: np.ndarray) -> np.ndarray:
    """Returns a view of the part as [layers, rows, columns], whatever the order of its axes."""
    layers = self.layers.stop - self.layers.start
    if self.transposed:
      return part.reshape(layers, len(self.columns), len(self.rows)).swapaxes(1, 2)
    return part.reshape(layers, len(self.rows), len(self.columns))

  def take(self, first: int, block: np.ndarray, matrix: np.ndarray) -> None:
    """Copies the rows and columns of this part from a block of rows, numbered from `first`, into `matrix`."""
    begin, end = np.searchsorted(self.rows, (first, first + len(block)))
    if begin == end:
      return
    found = block[_as_slice(self.rows[begin:end] - first)][:, _as_slice(self.columns)]
    if found.dtype == matrix.dtype:  # NumPy copies integers faster than bfloat16
      bits = f"u{found.dtype.itemsize}"
      found, matrix = found.view(bits), matrix.view(bits)
    matrix[begin:end] = found


def box_of(tensor: Tensor, part: int, shape: tuple[int, ...], index: Index) -> Box:
  """Returns the box of the slice `index` of a parameter, which is number `part` of its tensor's parameters."""
  sizes, bounds = list(shape), list(bounds_of(index, shape))
  layers = slice(*bounds.pop(0)) if tensor.is_stacked else slice(0, 1)
  sizes = sizes[len(sizes) - len(bounds) :]
  count = tensor.shape[0] // len(tensor.paths)
  axes = _row_axes(sizes, count, tensor.is_matrix)
  rest = [axis for axis in range(len(sizes)) if axis not in axes]
  return Box(
    shape=tuple(stop - start for start, stop in bounds_of(index, shape)),
    layers=layers,
    rows=part * count + _numbers(sizes, bounds, axes),
    columns=_numbers(sizes, bounds, rest),
    transposed=tensor.is_matrix,
  )


def _row_axes(sizes: list[int], count: int, transposed: bool) -> list[int]:
  """Returns the axes that make the file's `count` rows: the last ones of a matrix, the first ones otherwise."""
  order = list(range(len(sizes)))[:: -1 if transposed else 1]
  used = next(
    n for n in range(1, len(order) + 1) if math.prod(sizes[i] for i in order[:n]) == count
  )
  return sorted(order[:used])


def _numbers(
  sizes: list[int], bounds: list[tuple[int, int]], axes: list[int]
) -> Int[np.ndarray, "n"]:
  """Returns the positions, in C order over `axes`, of the entries inside the bounds."""
  numbers = np.arange(math.prod(sizes[axis] for axis in axes)).reshape([sizes[a] for a in axes])
  return numbers[tuple(slice(*bounds[axis]) for axis in axes)].ravel()


def _as_slice(numbers: Int[np.ndarray, "n"]) -> slice | np.ndarray:
  """Returns ascending numbers as a slice if they have no gap: indexing by a slice makes no copy."""
  if numbers[-1] - numbers[0] == len(numbers) - 1:
    return slice(numbers[0], numbers[-1] + 1)
  return numbers


def bounds_of(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  """Returns (start, stop) of the slice on every axis."""
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
