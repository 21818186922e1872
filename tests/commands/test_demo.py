"""The whole method from one command."""

import json
import threading

import pytest
from etils import epath

from spatial_vlm import config
from spatial_vlm.commands import demo as command
from spatial_vlm.commands.command import Command
from spatial_vlm.evaluation import results_report


def settings(**changes):
  return config.load(
    "configs/demo.py:tiny", [f"--config.{name}={value}" for name, value in changes.items()]
  )


def test_every_stage_has_settings_that_its_command_knows(tmp_path):
  """A leaf that does not exist, or a value of another type, would stop the demo after minutes."""
  chosen = settings()
  plan = command.stages(chosen, epath.Path(tmp_path))
  for stage in plan:
    name = stage.command.name
    changes = [f"--config.{leaf}={value}" for leaf, value in stage.changes.items()]
    loaded = config.load(f"configs/{name}.py:{stage.preset}", changes)
    assert all(
      str(config.leaves(loaded)[leaf]) == str(value) for leaf, value in stage.changes.items()
    )
    assert stage.seconds > 0 and stage.title
  names = [stage.name for stage in plan]
  assert len({*names}) == len(names)
  assert {*command.ROWS.values()} <= {stage.folder for stage in plan}
  assert [*results_report.METHODS] == [*command.ROWS][: len(results_report.METHODS)]
  assert set(config.unread(chosen)) == {"scenes_shown", "stages_at_once"}  # read by the run itself


def test_a_stage_waits_for_all_that_it_reads(tmp_path):
  """Whose folder stands in its settings; and the plan has it behind them."""
  plan = command.stages(settings(), epath.Path(tmp_path))
  before: dict[str, set[str]] = {}  # of each stage so far: all that are over when it begins
  for stage in plan:
    before[stage.name] = {*stage.needs}.union(*(before[need] for need in stage.needs))
    paths = [str(value) for value in stage.changes.values()]
    read = {s.folder for s in plan for path in paths if f"/{s.folder}/" in path}
    if stage.note == command.TIMED:
      read |= {stage.folder}
    assert {f"{folder}/{command.DONE}" for folder in read} <= before[stage.name]


def test_one_question_at_a_time_is_measured_when_nothing_else_runs(tmp_path):
  plan = command.stages(settings(timed_questions=7), epath.Path(tmp_path))
  timed = [stage for stage in plan if stage.changes.get("timed_questions")]
  models = [f for m, f in command.ROWS.items() if m != results_report.MAJORITY]
  assert sorted(stage.folder for stage in timed) == sorted(models)
  for stage in timed:
    assert stage.changes["timed_questions"] == 7
    assert len(stage.needs) == plan.index(stage)  # all before it are over


def test_labels_and_pictures_of_held_out_scenes_train_nothing(tmp_path):
  for stage in command.stages(settings(), epath.Path(tmp_path)):
    if stage.command.name in ("sft", "dapo", "behaviors"):
      assert not any("test" in str(value).rsplit("/", 1)[-1] for value in stage.changes.values())


def fake(name, *needs, seconds=10, run=lambda *_: None):
  """A stage of no work."""
  export = Command("export", run)
  needs = tuple(f"{need}/{command.DONE}" for need in needs)
  return command.Stage(f"stage {name}", name, export, "tiny", {}, seconds, needs)


@pytest.fixture
def fake_stages(monkeypatch):
  """Four stages of no work, one behind the other; a list of those that ran, and one to name the stage that fails."""
  ran, failing = [], []

  def run(loaded, folder, args):
    ran.append(folder.name)
    if folder.name in failing:
      raise RuntimeError(folder.name)

  plan = [fake(name, *need, run=run) for name, need in zip("abcd", ["", *"abc"], strict=True)]
  monkeypatch.setattr(command, "stages", lambda *_: plan)
  monkeypatch.setattr(command, "write_report", lambda *_: ran.append("report"))
  return ran, failing


def test_it_goes_on_with_the_stage_that_was_interrupted(fake_stages, tmp_path, capsys):
  ran, failing = fake_stages
  failing.append("c")
  with pytest.raises(RuntimeError):
    command.run(settings(), epath.Path(tmp_path), None)
  assert ran == ["a", "b", "c"]
  # a kill in the middle of its note: the stage is run again
  (tmp_path / "b" / command.DONE).write_text('{"beg')
  ran.clear()
  failing.clear()
  capsys.readouterr()
  command.run(settings(), epath.Path(tmp_path), None)
  assert ran == ["b", "c", "d", "report"]
  said = capsys.readouterr().out
  assert "[2/4] stage b · about 1 min left" in said and "[1/4]" not in said


def test_the_time_left_follows_the_pace_of_this_machine(fake_stages, tmp_path, capsys):
  (tmp_path / "a").mkdir()
  span = {"begun": 5000.0, "ended": 6200.0}  # 120 times slower than expected
  (tmp_path / "a" / command.DONE).write_text(json.dumps(span))
  command.run(settings(), epath.Path(tmp_path), None)
  assert "[2/4] stage b · about 60 min left" in capsys.readouterr().out


def test_time_left_is_that_of_the_longest_chain_or_of_all_shared_out():
  chain = [fake("a"), fake("b", "a"), fake("c", "b")]
  assert command.seconds_left(chain, {}, 2) == 30
  apart = [fake("a"), fake("b"), fake("c", seconds=40)]
  assert command.seconds_left(apart, {}, 2) == 40
  assert command.seconds_left(apart, {}, 1) == 60
  assert command.seconds_left(apart, {f"c/{command.DONE}": command.Span(0.0, 40.0)}, 1) == 20
  assert command.seconds_left(apart, {f"c/{command.DONE}": command.Span(0.0, 80.0)}, 1) == 40


def test_stages_run_together_where_none_needs_the_other(monkeypatch, tmp_path):
  """a and b wait for each other's beginning, so neither could end if they ran in turn; c needs both, and d is last."""
  both, at_once, most = threading.Barrier(2, timeout=60), [], []

  def meet(loaded, folder, args):
    at_once.append(folder.name)
    both.wait()
    most.append(len(at_once))
    at_once.remove(folder.name)

  def alone(loaded, folder, args):
    assert not at_once
    most.append(folder.name)

  plan = [fake("a", run=meet), fake("b", run=meet), fake("c", "a", "b", run=alone)]
  monkeypatch.setattr(command, "stages", lambda *_: [*plan, fake("d", "c", run=alone)])
  monkeypatch.setattr(command, "write_report", lambda *_: None)
  command.run(settings(), epath.Path(tmp_path), None)
  assert most[2:] == ["c", "d"]


def test_time_is_counted_once_where_stages_overlap():
  spans = [command.Span(10, 20), command.Span(0, 4), command.Span(12, 15), command.Span(18, 30)]
  assert command.busy_seconds(spans) == 4 + 20


def test_another_config_in_the_same_folder_is_refused(fake_stages, tmp_path):
  command.run(settings(), epath.Path(tmp_path), None)
  with pytest.raises(config.UsageError, match="dapo_steps"):
    command.run(settings(dapo_steps=1), epath.Path(tmp_path), None)
  command.run(settings(scenes_shown=2), epath.Path(tmp_path), None)


def test_scenes_shown_are_spread_evenly():
  assert command.evenly(10, 4) == [0, 2, 5, 7]
  assert command.evenly(3, 5) == [0, 1, 2]


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills):
  """From the shipped base: after a few chains it answers well enough to have behaviors."""
  changes = {
    "training_scenes": 256,
    "chains": 96,
    "validation_scenes": 64,
    "test_scenes": 64,
    "sft_epochs": 10,
    "dapo_steps": 3,
    "behavior_scenes": 256,
    "min_support": 1,
    "reuse_epochs": 20,
    "timed_questions": 1,
    "scenes_shown": 4,
  }
  whole, killed = after_ten_kills("demo", changes)
  assert killed == whole
  assert [row["method"] for row in whole["results.json"]] == [*results_report.METHODS]
  assert {"training.png", "relations.png", "scenes.png"} <= whole.keys()
