"""The choice of a config's programs."""

import pytest

from spatial_vlm.config import UsageError
from spatial_vlm.planning.batch_rows import BATCH_ROWS
from spatial_vlm.planning.programs import PROGRAMS, algorithm_of


@pytest.mark.parametrize("algorithm", ["sft", "dapo"])
def test_each_training_config_names_its_algorithm(load_config, algorithm):
  for preset in ("tiny", "8b"):
    assert algorithm_of(load_config(f"configs/{algorithm}.py:{preset}")) == algorithm


def test_other_configs_are_refused(load_config):
  with pytest.raises(
    UsageError, match="algorithm is None; programs can be planned for sft and dapo"
  ):
    algorithm_of(load_config("configs/scenes.py:tiny"))


def test_tables_know_the_same_algorithms():
  assert PROGRAMS.keys() == BATCH_ROWS.keys()
