"""Progress on a terminal and in a log."""

import io
import sys

import pytest

from spatial_vlm import progress
from spatial_vlm.progress import Pace, progress_bar, track


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands still until a test moves it."""
  seconds = [100.0]
  monkeypatch.setattr(Pace.__init__, "__defaults__", (lambda: seconds[0],))
  return seconds


@pytest.fixture
def stderr(capsys):
  """Returns what was written so far."""
  return lambda: capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_every_some_seconds(clock, stderr):
  with progress_bar("sft", 1500, done=100) as bar:
    for step in range(60):
      clock[0] += 1.0
      bar.set_postfix(loss=step)
      bar.update()
  assert stderr().splitlines() == [
    "sft: 100/1,500",
    "sft: 115/1,500, 00:15 elapsed, 23:05 left, loss=14",
    "sft: 130/1,500, 00:30 elapsed, 22:50 left, loss=29",
    "sft: 145/1,500, 00:45 elapsed, 22:35 left, loss=44",
    "sft: 160/1,500, 01:00 elapsed, 22:20 left, loss=59",
  ]


def test_the_first_step_compiles_and_is_left_out_of_the_time_left(clock, stderr):
  with progress_bar("dapo", 30, compiles=True) as bar:
    clock[0] += 80.0
    bar.set_postfix(tokens=99)
    bar.update()
    clock[0] += 20.0
    bar.update(2)
  compiling, first, third = stderr().splitlines()
  assert compiling == "dapo: 0/30, compiling"
  assert first == "dapo: 1/30, 01:20 elapsed, tokens=99"
  assert third == "dapo: 3/30, 01:40 elapsed, 04:30 left, tokens=99"


def test_later_compilation_is_left_out_too(clock, stderr):
  compiled = [5.0]
  with progress_bar("sft", 10, compiles=True, excluded=lambda: compiled[0]) as bar:
    bar.update()
    clock[0] += 42.0
    compiled[0] += 40.0
    bar.update(2)
  assert stderr().splitlines()[-1] == "sft: 3/10, 00:42 elapsed, 00:07 left"


def test_a_terminal_shows_a_bar_with_the_same_time_left(clock, monkeypatch):
  monkeypatch.setattr(sys, "stderr", Terminal())
  with progress_bar("dapo", 30, compiles=True) as bar:
    assert "compiling" in str(bar)
    clock[0] += 80.0
    bar.update()
    assert "<?" in str(bar) and "compiling" not in str(bar)
    clock[0] += 20.0
    bar.update(2)
    assert "<04:30" in str(bar)


def test_finished_work_and_bytes(clock, stderr):
  assert [*track("abc", "letters", 3)] == ["a", "b", "c"]
  with progress_bar("done before", 3, done=3, compiles=True):
    pass
  with progress_bar("copying x", 2_500_000, unit="B") as bar:
    clock[0] += 20.0
    bar.update(500_000)
  assert stderr().splitlines() == [
    "letters: 0/3",
    "letters: 3/3, 00:00 elapsed",
    "done before: 3/3",
    "copying x: 0.00B/2.50MB",
    "copying x: 500kB/2.50MB, 00:20 elapsed, 01:20 left",
  ]


def test_only_one_process_shows_progress(stderr):
  with progress_bar("sft", 3, disable=True) as bar:
    bar.set_postfix(loss=1)
    bar.update()
  assert bar.disable and not stderr()


def test_no_line_has_a_control_character(stderr):
  with progress_bar("outer", 2) as outer, progress_bar("inner", None) as inner:
    inner.update()
    outer.update()
    inner.set_postfix_str("x")
  assert progress.LINE_SECONDS >= 5
  assert not {"\r", "\x1b"} & {*stderr()}
