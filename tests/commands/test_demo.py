"""`demo`: the whole method from one command."""

import contextlib
import json
import types
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
from etils import epath

from spatial_vlm import config
from spatial_vlm.commands import demo as command
from spatial_vlm.demo import methods
from spatial_vlm.demo.stages import DONE, Stage

ARGS = types.SimpleNamespace(compilation_cache=True)


def settings(**changes):
  return config.load(
    "configs/demo.py:tiny", [f"--config.{name}={value}" for name, value in changes.items()]
  )


def test_a_setting_that_a_command_refuses_stops_the_demo_before_its_first_stage(tmp_path):
  with pytest.raises(
    config.UsageError, match="stage 'scenes' of the demo, which runs `scenes`: .*counts.train is 64"
  ):
    command.run(settings(training_scenes=64), epath.Path(tmp_path), ARGS)
  assert not list(tmp_path.iterdir())


@pytest.fixture
def fake_stages(monkeypatch):
  """Four empty stages in sequence, in this process; a list of those that ran, and one that names the stage to fail."""
  ran, failing = [], []

  def run(loaded, folder, args):
    ran.append(folder.name)
    if folder.name in failing:
      raise (config.UsageError if folder.name == "d" else RuntimeError)(folder.name)

  plan = []
  for name, need in zip("abcd", ["", *"abc"], strict=True):
    needs = (f"{need}/{DONE}",) if need else ()
    plan.append(Stage(f"stage {name}", name, "export", "tiny", {}, 10, needs))
  monkeypatch.setattr(command, "stages", lambda *_: plan)
  monkeypatch.setattr(
    command, "COMMANDS", {"export": types.SimpleNamespace(run=run, check=lambda config: None)}
  )
  monkeypatch.setattr(command, "worker_processes", lambda *_: ThreadPoolExecutor(1))
  monkeypatch.setattr(command, "interruptible", contextlib.nullcontext)
  monkeypatch.setattr(command.demo_report, "write_report", lambda *_: ran.append("report"))
  return ran, failing


def test_the_demo_resumes_at_the_interrupted_stage(fake_stages, tmp_path, capsys):
  ran, failing = fake_stages
  failing.append("c")
  with pytest.raises(RuntimeError):
    command.run(settings(), epath.Path(tmp_path), ARGS)
  assert ran == ["a", "b", "c"]
  # a kill while its record is written: the stage runs again
  (tmp_path / "b" / DONE).write_text('{"beg')
  ran.clear()
  failing.clear()
  capsys.readouterr()
  command.run(settings(), epath.Path(tmp_path), ARGS)
  assert ran == ["b", "c", "d", "report"]
  said = capsys.readouterr().out
  assert "[2/4] stage b · about 1 min left" in said and "[1/4]" not in said


def test_a_stage_that_refuses_its_input_is_named(fake_stages, tmp_path):
  fake_stages[1].append("d")
  with pytest.raises(
    config.UsageError, match="stage 'stage d' of the demo, which runs `export`: d"
  ):
    command.run(settings(), epath.Path(tmp_path), ARGS)


@pytest.mark.parametrize(("platforms", "workers"), [("cpu", 2), ("tpu,cpu", 1), (None, 1)])
def test_an_accelerator_belongs_to_one_process(
  fake_stages, monkeypatch, tmp_path, platforms, workers
):
  asked = []

  def pool(count, keep_compiled):
    asked.append(count)
    return ThreadPoolExecutor(count)

  monkeypatch.setattr(command, "worker_processes", pool)
  found = types.SimpleNamespace(config=types.SimpleNamespace(jax_platforms=platforms))
  monkeypatch.setattr(command, "jax", found)
  command.run(settings(), epath.Path(tmp_path), ARGS)
  assert asked == [workers]


def test_a_worker_that_is_killed_is_reported(fake_stages, monkeypatch, tmp_path):
  class Killed(ThreadPoolExecutor):
    def submit(self, *_):
      raise BrokenProcessPool("terminated abruptly")

  monkeypatch.setattr(command, "worker_processes", lambda *_: Killed(1))
  with pytest.raises(config.UsageError, match="was killed.*stages_at_once=1 needs less"):
    command.run(settings(), epath.Path(tmp_path), ARGS)


def test_the_remaining_time_follows_this_machines_speed(fake_stages, tmp_path, capsys):
  (tmp_path / "a").mkdir()
  (tmp_path / "results.json").touch()  # as in a run
  span = {"begun": 5000.0, "ended": 6200.0}  # 120 times slower than expected
  (tmp_path / "a" / DONE).write_text(json.dumps(span))
  command.run(settings(), epath.Path(tmp_path), ARGS)
  assert "[2/4] stage b · about 60 min left" in capsys.readouterr().out


def test_another_config_in_the_same_folder_is_refused(fake_stages, tmp_path):
  command.run(settings(), epath.Path(tmp_path), ARGS)
  with pytest.raises(config.UsageError, match="dapo_steps"):
    command.run(settings(dapo_steps=1), epath.Path(tmp_path), ARGS)
  command.run(settings(scenes_shown=2), epath.Path(tmp_path), ARGS)


@pytest.mark.kills
def test_ten_kills_leave_no_trace(after_ten_kills):
  """From the shipped base: after a few chains it answers well enough to have behaviors."""
  changes = {
    "training_scenes": 256,
    "chains": 96,
    "validation_scenes": 64,
    "test_scenes": 64,
    "sft_epochs": 10,
    "direct_epochs": 1,
    "dapo_steps": 3,
    "behavior_scenes": 256,
    "min_support": 1,
    "reuse_epochs": 20,
    "timed_questions": 1,
    "scenes_shown": 4,
  }
  whole, killed = after_ten_kills("demo", changes)
  assert killed == whole
  assert [row["method"] for row in whole["results.json"]] == [*methods.METHODS]
  assert {"training.png", "relations.png", "scenes.png"} <= whole.keys()
