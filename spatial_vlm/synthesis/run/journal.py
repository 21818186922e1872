"""All that passed between this project and a teacher, line by line, so that nothing is asked and paid for twice.

A start writes a part of its own (`part-00000.jsonl`, …) and only ever appends to it:

  {"kind": "sent", "key": …}                 a question leaves; without a later line on its key it was in flight when
                                             the start ended, and may have been billed
  {"kind": "reply", "key": …, "text": …, "finish": …, "model_version": …, "usage": {…}, "batch": …, "raw": {…}}
  {"kind": "refused", "key": …, "reason": …} the teacher will never answer this question
  {"kind": "lost", "key": …, "reason": …}    no whole reply came back: it may have been billed
  {"kind": "busy", "key": …, "reason": …}    not answered and not billed
  {"kind": "job", "name": …, "keys": […]}    a batch, before it is created
  {"kind": "ended", "name": …, "state": …}   a batch whose results are all stored

Keys are those of `Questions.key`. A line without its end, torn by a kill, is always the last of its part.
"""

import collections
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

from spatial_vlm.config import UsageError
from spatial_vlm.jsonl import next_part, parts
from spatial_vlm.synthesis.teacher import Refused, Reply, Usage

Answer = Reply | Refused
"""What settles a question."""

_CLOSING = ("reply", "refused", "lost", "busy")


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a stored reply took."""

  usage: Usage
  batch: bool
  """Through the Batch API, at its price."""


class Journal:
  """Reads what earlier starts wrote, and appends, as `with Journal(folder) as journal`; one process at a time.

  Raises UsageError for a folder that is not local, in use, or damaged.
  """

  def __init__(self, folder: os.PathLike | str):
    if "://" in os.fspath(folder):
      raise UsageError(
        f"{os.fspath(folder)} is elsewhere; every reply is appended as it arrives, so give a local --workdir"
      )
    self.folder = Path(folder)
    self.answers: dict[str, Answer] = {}
    """By key; without what was received in raw form, which only the files hold."""
    self.versions: set[str] = set()
    """Of the models that have answered."""
    self.spent: list[Spent] = []
    self.lost: list[str] = []
    """Keys of questions that may have been billed without an answer, once for each time."""
    self.interrupted: list[str] = []
    """Keys of those that were in flight when a start ended."""
    self.jobs: dict[str, tuple[str, ...]] = {}
    """Keys of every batch, by name."""
    self.ended: set[str] = set()
    """Names of batches whose results are stored."""
    self._open = contextlib.ExitStack()
    self._part: IO[str] | None = None

  def __enter__(self) -> Self:
    self.folder.mkdir(parents=True, exist_ok=True)
    lock = self._open.enter_context((self.folder / "lock").open("w"))
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      self._open.close()
      raise UsageError(
        f"another process writes to {self.folder}; wait for its end, or stop it"
      ) from error
    with contextlib.ExitStack() as on_error:
      on_error.callback(self._open.close)
      for part in parts(self.folder):
        self._read(part)
      on_error.pop_all()
    return self

  def __exit__(self, *_: object) -> None:
    self._open.close()
    self._part = None

  def sent(self, key: str) -> None:
    self._append({"kind": "sent", "key": key})

  def reply(self, key: str, reply: Reply, batch: bool = False) -> None:
    """On the disk when this returns."""
    fields = dataclasses.asdict(reply) | {"usage": reply.usage._asdict(), "batch": batch}
    self._append({"kind": "reply", "key": key, **fields}, is_precious=True)

  def refused(self, key: str, reason: str) -> None:
    self._append({"kind": "refused", "key": key, "reason": reason})

  def lose(self, key: str, reason: str) -> None:
    self._append({"kind": "lost", "key": key, "reason": reason})

  def busy(self, key: str, reason: str) -> None:
    self._append({"kind": "busy", "key": key, "reason": reason})

  def job(self, name: str, keys: Sequence[str]) -> None:
    """Before the batch is created; on the disk when this returns."""
    self._append({"kind": "job", "name": name, "keys": list(keys)}, is_precious=True)

  def end(self, name: str, state: str) -> None:
    self._append({"kind": "ended", "name": name, "state": state})

  def open_jobs(self) -> dict[str, tuple[str, ...]]:
    """Batches whose results are not stored yet, or not all of them: their keys by name."""
    return {name: keys for name, keys in self.jobs.items() if name not in self.ended}

  def questions_in_batches(self) -> list[str]:
    """Keys of questions that a batch has still to answer."""
    return [key for keys in self.open_jobs().values() for key in keys if key not in self.answers]

  def raw(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and whole content of every stored reply, as it was received."""
    for part in parts(self.folder):
      for line in _lines(part):
        entry = json.loads(line)
        if entry["kind"] == "reply":
          yield entry["key"], entry["raw"]

  def _append(self, entry: dict[str, Any], is_precious: bool = False) -> None:
    if self._part is None:
      self._part = self._open.enter_context(next_part(self.folder).open("x", encoding="utf-8"))
    self._part.write(json.dumps(entry) + "\n")
    self._part.flush()
    if is_precious:
      os.fsync(self._part.fileno())
    self._take(entry)

  def _read(self, part: Path) -> None:
    in_flight: collections.Counter[str] = collections.Counter()
    for number, line in enumerate(_lines(part), start=1):
      try:
        entry = json.loads(line)
        self._take(entry)
        if entry["kind"] == "sent":
          in_flight[entry["key"]] += 1
        elif entry["kind"] in _CLOSING and in_flight[entry["key"]]:
          in_flight[entry["key"]] -= 1
      except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
          f"{part}:{number} is no entry of a journal ({error!r}); remove the line, and what it answered is asked again"
        ) from error
    self.interrupted += in_flight.elements()

  def _take(self, entry: dict[str, Any]) -> None:
    match entry:
      case {"kind": "reply", "key": key, "usage": usage, "batch": batch}:
        usage = Usage(**usage)
        self.spent.append(Spent(usage, batch))
        self.versions.add(entry["model_version"])
        self.answers[key] = Reply(
          entry["text"], entry["finish"], entry["model_version"], usage, raw={}
        )
      case {"kind": "refused", "key": key, "reason": reason}:
        self.answers[key] = Refused(reason)
      case {"kind": "lost", "key": key}:
        self.lost.append(key)
      case {"kind": "job", "name": name, "keys": keys}:
        self.jobs[name] = tuple(keys)
      case {"kind": "ended", "name": name}:
        self.ended.add(name)
      case {"kind": "sent" | "busy"}:
        pass
      case _:
        raise ValueError(f"unknown: {str(entry)[:100]}")


def _lines(part: Path) -> Iterator[str]:
  """Whole lines of a part, read one by one: it may hold gigabytes."""
  with part.open(encoding="utf-8") as file:
    yield from itertools.takewhile(lambda line: line.endswith("\n"), file)
