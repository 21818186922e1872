"""The model and the chips of a plan."""

import pytest

from spatial_vlm.model.config import PRESETS
from spatial_vlm.planning.target import choose_model, make_target


def test_the_model_is_that_of_the_checkpoint_unless_named(nano):
  assert choose_model(None, "") == PRESETS["8b"]
  assert choose_model("2b", str(nano)) == PRESETS["2b"]
  assert choose_model(None, str(nano)).text.hidden_size == 32


def test_a_plan_needs_a_slice():
  with pytest.raises(ValueError, match="--slices is 0; give 1 or more"):
    make_target(PRESETS["8b"], "v5e:4x8", 0)
