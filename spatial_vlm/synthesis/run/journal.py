"""Stores all traffic with a teacher as JSON lines, so that no question is sent and paid for twice.

Every start appends to its own part (`part-00000.jsonl`, …):

  {"kind": "sent", "key": …}                 a question is sent; without a later line for its key, it was in flight when
                                             the start ended and may have been billed
  {"kind": "reply", "key": …, "text": …, "finish": …, "model_version": …, "usage": {…}, "batch": …, "raw": {…}}
  {"kind": "refused", "key": …, "reason": …} the teacher will never answer this question
  {"kind": "reopened", "keys": […]}          refusals that are not final: they stopped a run
  {"kind": "lost", "key": …, "reason": …}    no complete reply arrived; it may have been billed
  {"kind": "busy", "key": …, "reason": …}    not answered and not billed
  {"kind": "job", "name": …, "keys": […]}    a batch, written before it is created
  {"kind": "ended", "name": …, "state": …}   all results of the batch are stored

Keys come from `Questions.key`. Only the last line of a part can be incomplete, after a kill; it is skipped.
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
from spatial_vlm.synthesis.teacher import Answer, Refusal, Reply, Usage
from spatial_vlm.text import short_line, without_surrogates

_CLOSING = ("reply", "refused", "lost", "busy")


@dataclasses.dataclass(frozen=True)
class BilledReply:
  """Cost of a stored reply."""

  usage: Usage
  batch: bool
  """True for a reply of the Batch API, which has its own price."""


class Journal:
  """Reads the parts of earlier starts and appends a new one, as `with Journal(folder) as journal`.

  Only one process may open a folder. Raises UsageError for a folder that is remote, in use or damaged.
  """

  def __init__(self, folder: os.PathLike | str):
    if "://" in os.fspath(folder):
      raise UsageError(
        f"{os.fspath(folder)} is remote, but every reply is appended as it arrives; give a local --workdir"
      )
    self.folder = Path(folder)
    self.answers: dict[str, Answer] = {}
    """Final answers by key, without the raw responses; only the files hold those (see `raw`)."""
    self.versions: set[str] = set()
    """Model versions that have answered."""
    self.billed: list[BilledReply] = []
    self.lost: list[str] = []
    """Keys of questions that may have been billed without an answer, once per loss."""
    self.interrupted: list[str] = []
    """Keys of questions that were in flight when a start ended."""
    self.jobs: dict[str, tuple[str, ...]] = {}
    """Name → keys of every batch."""
    self.ended: set[str] = set()
    """Names of the batches whose results are stored."""
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
        f"another process writes to {self.folder}; wait until it ends, or stop it"
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

  def add_sent(self, key: str) -> None:
    """Records that a question is about to be sent."""
    self._append({"kind": "sent", "key": key})

  def add_reply(self, key: str, reply: Reply, batch: bool = False) -> None:
    """Records a reply; it is on disk when this returns."""
    fields = dataclasses.asdict(reply) | {"usage": reply.usage._asdict(), "batch": batch}
    self._append({"kind": "reply", "key": key, **fields}, must_sync=True)

  def add_refusal(self, key: str, reason: str) -> None:
    """Records that the teacher will never answer a question."""
    self._append({"kind": "refused", "key": key, "reason": reason})

  def reopen(self, keys: Sequence[str]) -> None:
    """Records that refusals are not final."""
    self._append({"kind": "reopened", "keys": list(keys)})

  def add_lost(self, key: str, reason: str) -> None:
    """Records that no complete reply arrived."""
    self._append({"kind": "lost", "key": key, "reason": reason})

  def add_busy(self, key: str, reason: str) -> None:
    """Records that a question was neither answered nor billed."""
    self._append({"kind": "busy", "key": key, "reason": reason})

  def add_job(self, name: str, keys: Sequence[str]) -> None:
    """Records a batch that is about to be created; the line is on disk when this returns."""
    self._append({"kind": "job", "name": name, "keys": list(keys)}, must_sync=True)

  def end_job(self, name: str, state: str) -> None:
    """Records that all results of a batch are stored."""
    self._append({"kind": "ended", "name": name, "state": state})

  def open_jobs(self) -> dict[str, tuple[str, ...]]:
    """Returns name → keys of the batches whose results are not all stored."""
    return {name: keys for name, keys in self.jobs.items() if name not in self.ended}

  def questions_in_batches(self) -> list[str]:
    """Returns the keys of questions that a batch has not answered yet."""
    return [key for keys in self.open_jobs().values() for key in keys if key not in self.answers]

  def raw(self) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields key and raw response of every stored reply."""
    for part in parts(self.folder):
      for line in _lines(part):
        entry = json.loads(line)
        if entry["kind"] == "reply":
          yield entry["key"], entry["raw"]

  def _append(self, entry: dict[str, Any], must_sync: bool = False) -> None:
    """Writes an entry, creating the part at the first one; `must_sync` waits for the disk."""
    if self._part is None:
      self._part = self._open.enter_context(next_part(self.folder).open("x", encoding="utf-8"))
    self._part.write(json.dumps(entry) + "\n")
    self._part.flush()
    if must_sync:
      os.fsync(self._part.fileno())
    self._apply(entry)

  def _read(self, part: Path) -> None:
    """Applies all entries of an earlier part."""
    in_flight: collections.Counter[str] = collections.Counter()
    for number, line in enumerate(_lines(part), start=1):
      try:
        entry = json.loads(line)
        self._apply(entry)
        if entry["kind"] == "sent":
          in_flight[entry["key"]] += 1
        elif entry["kind"] in _CLOSING and in_flight[entry["key"]]:
          in_flight[entry["key"]] -= 1
      except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
          f"{part}:{number} is no journal entry ({short_line(repr(error))}); remove the line, and its question is sent "
          "again"
        ) from error
    self.interrupted += in_flight.elements()

  def _apply(self, entry: dict[str, Any]) -> None:
    """Updates the state in memory by one entry."""
    match entry:
      case {"kind": "reply", "key": key, "usage": usage, "batch": batch}:
        usage = _usage(usage)
        self.billed.append(BilledReply(usage, batch))
        self.versions.add(entry["model_version"])
        text = entry["text"] and without_surrogates(entry["text"])
        self.answers[key] = Reply(text, entry["finish"], entry["model_version"], usage, raw={})
      case {"kind": "refused", "key": key, "reason": reason}:
        self.answers[key] = Refusal(reason)
      case {"kind": "reopened", "keys": keys}:
        for key in keys:
          self.answers.pop(key, None)
      case {"kind": "lost", "key": key}:
        self.lost.append(key)
      case {"kind": "job", "name": name, "keys": keys}:
        self.jobs[name] = tuple(keys)
      case {"kind": "ended", "name": name}:
        self.ended.add(name)
      case {"kind": "sent" | "busy"}:
        pass
      case _:
        raise ValueError(f"unknown kind: {str(entry)[:100]}")


def _usage(fields: dict[str, Any]) -> Usage:
  """Returns the tokens of an entry; ValueError or TypeError for anything else."""
  usage = Usage(**fields)
  if not all(type(tokens) is int for tokens in usage):
    raise ValueError(f"usage is {fields}")
  return usage


def _lines(part: Path) -> Iterator[bytes]:
  """Yields the complete lines of a part one by one, because it may hold gigabytes."""
  with part.open("rb") as file:
    yield from itertools.takewhile(lambda line: line.endswith(b"\n"), file)
