"""A run is prolonged only where its updates so far do not depend on its length."""

import json

import pytest
from etils import epath
from ml_collections import ConfigDict

from spatial_vlm.config import Config, UsageError, snapshot
from spatial_vlm.train.prolonging import RunLength
from spatial_vlm.train.run import record_settings


def settings(steps, schedule="constant", decay_steps=0, **others):
  optimizer = {"schedule": schedule, "decay_steps": decay_steps}
  return Config(ConfigDict({"steps": steps, "optimizer": optimizer, **others}))


@pytest.fixture
def started(tmp_path):
  """Starts a run with some settings in the workdir, which it returns."""

  def start(*args, **kwargs):
    snapshot(settings(*args, **kwargs), epath.Path(tmp_path))
    (tmp_path / "results.json").touch()  # a workdir with settings alone is of a start that failed
    return epath.Path(tmp_path)

  return start


@pytest.mark.parametrize("schedule", [("constant", 0), ("cosine", 9)])
def test_a_longer_run_goes_on_and_remembers_its_length(started, schedule):
  workdir = started(3, *schedule)
  record_settings(settings(5, *schedule), workdir, RunLength("steps"))
  stored = json.loads((workdir / "config.json").read_text())
  assert stored["config"]["steps"] == 5 and stored["versions"]
  with pytest.raises(UsageError, match="steps: 5 → 3"):
    record_settings(settings(3, *schedule), workdir, RunLength("steps"))


def test_where_it_cannot_be_prolonged_the_reason_is_said(started):
  workdir = started(3, "cosine")
  with pytest.raises(UsageError, match="steps 3 → 5: the learning rates so far belong to a cosine"):
    record_settings(settings(5, "cosine"), workdir, RunLength("steps"))
  assert json.loads((workdir / "config.json").read_text())["config"]["steps"] == 3


def test_other_batches_are_a_reason(started):
  workdir = started(3)
  asked = []
  with pytest.raises(UsageError, match="the last batches so far were made of what was left"):
    record_settings(settings(5), workdir, RunLength("steps", asked.append))
  assert asked == [3]


def test_other_settings_may_not_change_with_the_length(started):
  workdir = started(3, seed=1)
  with pytest.raises(UsageError, match="seed: 1 → 2"):
    record_settings(settings(5, seed=2), workdir, RunLength("steps"))
  assert json.loads((workdir / "config.json").read_text())["config"]["steps"] == 3
