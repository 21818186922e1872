"""The whole method from one command."""

import json
from types import SimpleNamespace

import pytest
from etils import epath

from spatial_vlm import config
from spatial_vlm.commands import demo as command
from spatial_vlm.evaluation import report


def settings(**changes):
  return config.load(
    "configs/demo.py:tiny", [f"--config.{name}={value}" for name, value in changes.items()]
  )


def test_every_stage_has_settings_that_its_command_knows(tmp_path):
  """A leaf that does not exist, or a value of another type, would stop the demo after minutes."""
  chosen = settings()
  plan = command.stages(chosen, epath.Path(tmp_path))
  for stage in plan:
    name = stage.command.__name__.rpartition(".")[2]
    changes = [f"--config.{leaf}={value}" for leaf, value in stage.changes.items()]
    loaded = config.load(f"configs/{name}.py:{stage.preset}", changes)
    assert all(
      str(config.leaves(loaded)[leaf]) == str(value) for leaf, value in stage.changes.items()
    )
    assert stage.seconds > 0 and stage.title
  folders = [stage.folder for stage in plan]
  assert len({*folders}) == len(folders) and {*command.ROWS.values()} <= {*folders}
  assert [*report.METHODS] == [*command.ROWS][: len(report.METHODS)]
  assert set(config.unread(chosen)) == {"scenes_shown"}  # read by the report


def test_labels_and_pictures_of_held_out_scenes_train_nothing(tmp_path):
  for stage in command.stages(settings(), epath.Path(tmp_path)):
    if stage.command.__name__.endswith(("sft", "dapo", "behaviors")):
      assert not any("test" in str(value).rsplit("/", 1)[-1] for value in stage.changes.values())


@pytest.fixture
def fake_stages(monkeypatch):
  """Four stages of no work; a list of those that ran, and one to name the stage that fails."""
  ran, failing = [], []

  def run(loaded, folder, args):
    ran.append(folder.name)
    if folder.name in failing:
      raise RuntimeError(folder.name)

  module = SimpleNamespace(
    __name__="spatial_vlm.commands.export", run=run, check=lambda config: None
  )
  plan = [command.Stage(f"stage {n}", n, module, "tiny", {}, 10) for n in "abcd"]
  monkeypatch.setattr(command, "stages", lambda *_: plan)
  monkeypatch.setattr(command, "write_report", lambda *_: ran.append("report"))
  return ran, failing


def test_it_goes_on_with_the_stage_that_was_interrupted(fake_stages, tmp_path, capsys):
  ran, failing = fake_stages
  failing.append("c")
  with pytest.raises(RuntimeError):
    command.run(settings(), epath.Path(tmp_path), None)
  assert ran == ["a", "b", "c"]
  (tmp_path / "b" / command.DONE).write_text(
    '{"seco'
  )  # a kill in the middle of its note: the stage is run again
  ran.clear()
  failing.clear()
  capsys.readouterr()
  command.run(settings(), epath.Path(tmp_path), None)
  assert ran == ["b", "c", "d", "report"]
  said = capsys.readouterr().out
  assert "[2/4] stage b · about 1 min left" in said and "[1/4]" not in said


def test_the_time_left_follows_the_pace_of_this_machine(fake_stages, tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / command.DONE).write_text(
    json.dumps({"seconds": 1200.0})
  )  # 120 times slower than expected
  command.run(settings(), epath.Path(tmp_path), None)
  assert "[2/4] stage b · about 60 min left" in capsys.readouterr().out


def test_another_config_in_the_same_folder_is_refused(fake_stages, tmp_path):
  command.run(settings(), epath.Path(tmp_path), None)
  with pytest.raises(config.UsageError, match="dapo_steps"):
    command.run(settings(dapo_steps=1), epath.Path(tmp_path), None)
  command.run(settings(scenes_shown=2), epath.Path(tmp_path), None)


def test_scenes_shown_are_spread_evenly():
  assert command.evenly(10, 4) == [0, 2, 5, 7]
  assert command.evenly(3, 5) == [0, 1, 2]


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills, taught):
  changes = {
    "base": taught,
    "training_scenes": 256,
    "chains": 96,
    "validation_scenes": 256,
    "test_scenes": 64,
    "sft_epochs": 8,
    "dapo_steps": 3,
    "behavior_scenes": 256,
    "reuse_epochs": 40,
    "timed_questions": 1,
    "scenes_shown": 4,
  }
  whole, killed = after_ten_kills("demo", changes)
  assert killed == whole
  assert [row["method"] for row in whole["results.json"]] == [*report.METHODS]
  assert {"training.png", "relations.png", "scenes.png"} <= whole.keys()
