"""The type checker that `conftest.py` gives to jaxtyping's import hook: arrays' shapes and types in annotations."""

import functools
import operator
import types
import typing

import beartype
import jax
import jaxtyping
import numpy as np


def _is_array(annotation) -> bool:
  return isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)


def _names_an_array(annotation) -> bool:
  """Whether a jaxtyping annotation such as `Float[Array, "B T"]` stands anywhere in this one."""
  return _is_array(annotation) or any(map(_names_an_array, typing.get_args(annotation)))


def _with_host_arrays(annotation):
  """Returns the same annotation, where JAX's arrays may be NumPy's: the package's functions take both."""
  if _is_array(annotation):
    if annotation.array_type is jax.Array:
      return annotation.dtype[jax.Array | np.ndarray | np.generic, annotation.dim_str]
    return annotation
  if not _names_an_array(annotation):
    return annotation
  parts = tuple(map(_with_host_arrays, typing.get_args(annotation)))
  if isinstance(annotation, types.UnionType):
    return functools.reduce(operator.or_, parts)
  return typing.get_origin(annotation)[parts]


def checked(function):
  """Decorates a function: each call checks the arguments, and the result, whose annotations name arrays.

  Other annotations are left to pyright. Constructors are left alone: jax builds pytrees of whatever it maps over.
  """
  annotations = {
    name: _with_host_arrays(annotation)
    for name, annotation in getattr(function, "__annotations__", {}).items()
    if _names_an_array(annotation)
  }
  if function.__name__ == "__init__" or not annotations:
    return function
  function.__annotations__ = annotations
  return beartype.beartype(function)
