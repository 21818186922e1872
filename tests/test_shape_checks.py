"""The checks of arrays that `conftest.py` installs."""

import jaxtyping
import numpy as np
import pytest
import shape_checks
from jaxtyping import Array, Float

from spatial_vlm.objectives.token_logprobs import ban

checked = jaxtyping.jaxtyped(typechecker=shape_checks.checked)


def test_the_package_is_checked():
  with pytest.raises(jaxtyping.TypeCheckError):
    ban(np.zeros((2, 3), np.float32), np.zeros(4, bool))


@pytest.mark.parametrize("annotation", [Float[Array, "B T"], 'Float[Array, "B T"]'])
def test_a_function_is_checked_whose_annotations_name_arrays(annotation):
  def first(x):
    return x[0]

  first.__annotations__["x"] = annotation
  first = checked(first)
  assert first(np.ones((2, 3), np.float32)).shape == (3,)
  with pytest.raises(jaxtyping.TypeCheckError):
    first(np.ones(3, np.float32))


def test_other_definitions_are_left_as_they_are():
  class Size:
    def plus(self, other: "Size") -> "Size":
      return other

  def total(sizes: list[int]) -> int:
    return sum(sizes)

  for definition in (Size, Size.plus, total):
    assert checked(definition) is definition
