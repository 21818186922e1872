"""Progress of long work on stderr: a bar on a terminal, elsewhere a line every few seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from tqdm import tqdm

LINE_SECONDS = 15.0
"""Least time between two lines of one piece of work."""

COMPILING = "compiling"
"""Stands in place of the values until the first step is done."""

Item = TypeVar("Item")


_line: int | None = None
"""Line of the terminal, from the first below the text, that the bars of this process take; None: the next free one."""


def share_terminal(line: int, lock: AbstractContextManager) -> None:
  """Makes the bars of this process take one line of a terminal on which other processes show theirs.

  Args:
    line: counted from 0.
    lock: one for all these processes.
  """
  global _line
  _line = line
  tqdm.set_lock(lock)


class Pace:
  """Seconds that a step takes, without compilation.

  Args:
    done: steps at the start.
    compiles: the first step compiles programs, and does not count.
    excluded: seconds so far that do not count either, such as those of later compilations.
    clock: seconds now.
  """

  def __init__(
    self,
    done: float,
    compiles: bool,
    excluded: Callable[[], float] | None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self.compiles, self.excluded, self.clock = compiles, excluded, clock
    self.began = clock()
    self._start(done)

  def _start(self, done: float) -> None:
    self.done, self.start = done, self._counted()

  def _counted(self) -> float:
    return self.clock() - (self.excluded() if self.excluded else 0.0)

  def update(self, done: float) -> None:
    """Tells how many steps are done now."""
    if self.compiles:
      self.compiles = False
      self._start(done)

  def rate(self, done: float) -> float | None:
    """Returns the steps of a second; None before the first one that counts."""
    seconds = self._counted() - self.start
    return (done - self.done) / seconds if done > self.done and seconds > 0 else None


class TerminalBar(tqdm):
  """A bar with the time left at its pace."""

  pace: Pace | None = None

  @property
  def format_dict(self) -> MutableMapping[str, Any]:
    """The values that the bar shows."""
    values = super().format_dict
    if self.pace:
      values["rate"] = self.pace.rate(self.n)
      values["initial"] = self.n  # without a rate, tqdm would show one of its own
    return values

  def update(self, n: float | None = 1) -> bool | None:
    """Counts finished work."""
    if self.pace:
      self.pace.update(self.n + (n or 0))
    if self.postfix == COMPILING:
      self.postfix = None
    return super().update(n)


class ProgressLines:
  """A line at the start, one every LINE_SECONDS and one at the end: for logs, without control characters."""

  disable = False

  def __init__(self, desc: str, total: int | None, initial: int, unit: str):
    self.desc, self.total, self.n, self.initial = desc, total, initial, initial
    self.unit = unit
    self.pace = Pace(initial, False, None)
    self.note, self.written = "", None

  def update(self, n: float = 1) -> None:
    """Counts finished work."""
    self.n += n
    self.pace.update(self.n)
    if self.note == COMPILING:
      self.note = ""
    if self.pace.clock() - self.last_line >= LINE_SECONDS:
      self.refresh()

  def set_postfix(self, refresh: bool = True, **values: object) -> None:
    """Sets the values that the next line ends with."""
    self.note = ", ".join(f"{name}={value}" for name, value in values.items())

  def set_postfix_str(self, text: str = "", refresh: bool = True) -> None:
    """Sets the end of the next line."""
    self.note = text

  def write(self, text: str) -> None:
    """Prints a line of its own."""
    tqdm.write(text)

  def refresh(self) -> None:
    """Writes a line now."""
    self.last_line, self.written = self.pace.clock(), self.n
    sys.stderr.write(f"{self._line()}\n")
    sys.stderr.flush()

  def close(self) -> None:
    """Writes the last line, unless it is written."""
    if self.written != self.n:
      self.refresh()

  def __enter__(self) -> "ProgressLines":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _line(self) -> str:
    done = self._amount(self.n)
    parts = [
      f"{self.desc}: " + (done if self.total is None else f"{done}/{self._amount(self.total)}")
    ]
    if self.n > self.initial:
      seconds = self.pace.clock() - self.pace.began
      parts.append(f"{tqdm.format_interval(round(seconds))} elapsed")
    rate = self.pace.rate(self.n)
    if rate and self.total is not None and self.n < self.total:
      parts.append(f"{tqdm.format_interval(round((self.total - self.n) / rate))} left")
    return ", ".join([*parts, self.note] if self.note else parts)

  def _amount(self, value: float) -> str:
    return tqdm.format_sizeof(value, self.unit) if self.unit == "B" else f"{value:,}"


def progress_bar(
  name: str,
  total: int | None,
  *,
  done: int = 0,
  unit: str = "it",
  compiles: bool = False,
  excluded: Callable[[], float] | None = None,
  disable: bool = False,
) -> TerminalBar | ProgressLines:
  """Returns the progress of some work, to be closed or used in a `with`.

  Args:
    name: what the work is.
    total: number of its steps; None: unknown.
    done: steps that an earlier start has done.
    unit: name of a step; "B" for bytes, which are shown as MB and GB.
    compiles: the first step compiles programs: say so, and leave it out of the time left.
    excluded: seconds so far that the time left does not count.
    disable: show nothing.
  """
  if disable or (sys.stderr is not None and sys.stderr.isatty()):
    settings: dict[str, Any] = dict(desc=name, total=total, initial=done, disable=disable)
    settings |= dict(unit=unit, unit_scale=unit == "B", dynamic_ncols=True, mininterval=0.5)
    settings |= dict(position=_line)
    bar = TerminalBar(**settings)
  else:
    bar = ProgressLines(name, total, done, unit)
  bar.pace = Pace(done, compiles, excluded)
  if compiles and done != total:
    bar.set_postfix_str(COMPILING, refresh=False)
  bar.refresh()
  return bar


def track(items: Iterable[Item], name: str, total: int) -> Iterator[Item]:
  """Yields the items and shows how many of `total` are worked on."""
  with contextlib.closing(progress_bar(name, total)) as bar:
    for item in items:
      yield item
      bar.update()
