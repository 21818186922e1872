"""Checks shapes and types of arrays that annotations name, while tests run: jaxtyping's import hook and beartype."""

import functools
import operator
import types
import typing
from collections.abc import Callable, Sequence

import beartype
import jax
import jaxtyping
import numpy as np


def install(packages: Sequence[str]) -> None:
  """Checks the functions of these packages, which must not be imported yet."""
  jaxtyping.install_import_hook(packages, "shape_checks.checked")
  # The hook decorates every function with `jaxtyping.jaxtyped`, and a closure each time that it is defined. For those
  # that name no array this checks nothing, and it took two fifths of the time of tracing a training step.
  jaxtyping.jaxtyped = functools.partial(_only_with_arrays, jaxtyping.jaxtyped)


def _only_with_arrays(jaxtyped: Callable, *, typechecker: Callable) -> Callable:
  """Returns `jaxtyped` as a decorator that leaves classes, and functions that name no array, as they are."""

  def decorate(definition):
    annotations = getattr(definition, "__annotations__", {}).values()
    # Annotations in quotes are read by jaxtyping; without brackets they name a class.
    may_name_arrays = any(
      _names_an_array(a) or (isinstance(a, str) and "[" in a) for a in annotations
    )
    if isinstance(definition, type) or not may_name_arrays:
      return definition
    return jaxtyped(definition, typechecker=typechecker)

  return decorate


def _is_array(annotation) -> bool:
  return isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)


def _names_an_array(annotation) -> bool:
  """Whether a jaxtyping annotation such as `Float[Array, "B T"]` occurs anywhere in this one."""
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
