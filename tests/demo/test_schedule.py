"""The order of stages, and their times."""

import threading
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from spatial_vlm.demo.schedule import Span, busy_seconds, run_stages, seconds_left
from spatial_vlm.demo.stages import DONE, Stage


def fake(name, *needs, seconds=10):
  """An empty stage."""
  needs = tuple(f"{need}/{DONE}" for need in needs)
  return Stage(f"stage {name}", name, "export", "tiny", {}, seconds, needs)


def test_time_left_is_the_longer_of_the_critical_path_and_the_shared_work():
  chain = [fake("a"), fake("b", "a"), fake("c", "b")]
  assert seconds_left(chain, {}, 2) == 30
  apart = [fake("a"), fake("b"), fake("c", seconds=40)]
  assert seconds_left(apart, {}, 2) == 40
  assert seconds_left(apart, {}, 1) == 60
  assert seconds_left(apart, {f"c/{DONE}": Span(0.0, 40.0)}, 1) == 20
  assert seconds_left(apart, {f"c/{DONE}": Span(0.0, 80.0)}, 1) == 40


def test_stages_run_together_where_none_needs_the_other(tmp_path):
  """A and b wait for each other's beginning, so neither could end if they ran in turn; c needs both, and d is last."""
  both, at_once, most = threading.Barrier(2, timeout=60), [], []

  def meet(name):
    at_once.append(name)
    both.wait()
    most.append(len(at_once))
    at_once.remove(name)

  def alone(name):
    assert not at_once
    most.append(name)

  def run(stage, folder):
    assert folder == tmp_path / stage.folder
    (meet if stage.folder in "ab" else alone)(stage.folder)

  plan = [fake("a"), fake("b"), fake("c", "a", "b"), fake("d", "c")]
  with ThreadPoolExecutor(2) as pool:
    run_stages(plan, epath.Path(tmp_path), 2, pool, run, lambda line: None)
  assert most[2:] == ["c", "d"]


def test_time_is_counted_once_where_stages_overlap():
  spans = [Span(10, 20), Span(0, 4), Span(12, 15), Span(18, 30)]
  assert busy_seconds(spans) == 4 + 20
