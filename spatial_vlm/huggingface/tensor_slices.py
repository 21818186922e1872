"""Which rows and columns of which tensors in the files make up a slice of a parameter."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from spatial_vlm.huggingface.tensor_table import Tensor

Index = tuple[slice, ...]
"""Part of an array, as `Sharding.devices_indices_map` gives it: steps of 1."""


class Box(NamedTuple):
  """Part of a parameter, as layers, rows and columns of its tensors in the files."""

  shape: tuple[int, ...]
  """Of the part."""
  layers: slice
  rows: Int[np.ndarray, "rows"]
  columns: Int[np.ndarray, "columns"]
  transposed: bool
  """The parameter has columns before rows."""

  def as_matrices(self, part: np.ndarray) -> np.ndarray:
    """A view of the part, [layers, rows, columns] whatever the order of its axes."""
    layers = self.layers.stop - self.layers.start
    if self.transposed:
      return part.reshape(layers, len(self.columns), len(self.rows)).swapaxes(1, 2)
    return part.reshape(layers, len(self.rows), len(self.columns))

  def take(self, first: int, block: np.ndarray, matrix: np.ndarray) -> None:
    """Copies what the part has of a block of rows, the first of which is row `first`, into one of its matrices."""
    begin, end = np.searchsorted(self.rows, (first, first + len(block)))
    if begin == end:
      return
    found = block[_as_slice(self.rows[begin:end] - first)][:, _as_slice(self.columns)]
    if found.dtype == matrix.dtype:  # bits are moved faster than bfloat16
      bits = f"u{found.dtype.itemsize}"
      found, matrix = found.view(bits), matrix.view(bits)
    matrix[begin:end] = found


def box_of(tensor: Tensor, part: int, shape: tuple[int, ...], index: Index) -> Box:
  """Where the slice `index` of a parameter of `shape`, part number `part` of its tensor, lies in the files."""
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
  """The last axes (of a matrix, else the first) that together have `count` entries: the rows of the file."""
  order = list(range(len(sizes)))[:: -1 if transposed else 1]
  used = next(
    n for n in range(1, len(order) + 1) if math.prod(sizes[i] for i in order[:n]) == count
  )
  return sorted(order[:used])


def _numbers(
  sizes: list[int], bounds: list[tuple[int, int]], axes: list[int]
) -> Int[np.ndarray, "n"]:
  """Places, in C order over `axes`, of the entries inside the bounds."""
  numbers = np.arange(math.prod(sizes[axis] for axis in axes)).reshape([sizes[a] for a in axes])
  return numbers[tuple(slice(*bounds[axis]) for axis in axes)].ravel()


def _as_slice(numbers: Int[np.ndarray, "n"]) -> slice | np.ndarray:
  """Ascending numbers as a slice if they have no gap, since a slice copies nothing."""
  if numbers[-1] - numbers[0] == len(numbers) - 1:
    return slice(numbers[0], numbers[-1] + 1)
  return numbers


def bounds_of(index: Index, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  """First entry, and the one behind the last, on every axis."""
  return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
