"""One process writes to a workdir: a file there says which, and a second one is refused.

On a disk the file is locked by the system, which lets go when the process ends in any way. An object store has no
locks: the owner writes the time into the file again and again, and a file that is too old is nobody's.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from spatial_vlm.config import UsageError
from spatial_vlm.remote import is_remote

LOCK_FILE = ".lock"
BEAT_S, STALE_S = 30.0, 120.0
"""A remote lock is written every BEAT_S seconds; one of STALE_S without a beat is nobody's."""


@contextlib.contextmanager
def only_writer(workdir: epath.Path) -> Iterator[None]:
  """Holds the lock of a workdir, which is created; a folder that is still empty at the end is removed.

  Raises UsageError, with host and process of the owner, if another process holds it.
  """
  if is_remote(workdir):
    with _beating(workdir / LOCK_FILE):
      yield
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UsageError(f"--workdir {workdir} cannot be made: {error.strerror}") from error
  path = os.fspath(workdir / LOCK_FILE)
  file = _locked(path)
  try:
    os.ftruncate(file, 0)
    os.write(file, json.dumps(_owner()).encode())
    yield
  finally:
    with contextlib.suppress(OSError):
      os.unlink(path)
      os.rmdir(workdir)
    os.close(file)


def _locked(path: str) -> int:
  """Returns a descriptor of the locked file.

  The locks are those of POSIX: forked workers, which may outlive a killed process, do not inherit them.
  """
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      owner = os.read(file, 10_000)
      os.close(file)
      if error.errno in (errno.EACCES, errno.EAGAIN):
        raise _in_use(path, _parsed(owner)) from error
      raise
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(path)):
        return file
    os.close(file)  # its owner has just removed the file


@contextlib.contextmanager
def _beating(path: epath.Path) -> Iterator[None]:
  """Holds a lock on an object store."""
  owner = _parsed(path.read_bytes()) if path.exists() else {}
  if owner and not _is_stale(owner):
    raise _in_use(str(path), owner)
  ended = threading.Event()

  def beat() -> None:
    while not ended.wait(BEAT_S):
      with contextlib.suppress(Exception):  # each library has its own; the next beat may succeed
        path.write_text(json.dumps(_owner()))

  path.write_text(json.dumps(_owner()))
  thread = threading.Thread(target=beat, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    path.unlink(missing_ok=True)


def _is_stale(owner: dict[str, Any]) -> bool:
  """Returns whether the owner has ended: its last beat is old, or it is a process of this host that is gone."""
  if abs(time.time() - owner["seen"]) > STALE_S:
    return True
  if owner["host"] != socket.gethostname() or owner["process"] == os.getpid():
    return owner["host"] == socket.gethostname()
  try:
    os.kill(owner["process"], 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass
  return False


def _owner() -> dict[str, Any]:
  """Returns what the file says of this process."""
  command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:2]])
  return {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "command": command,
    "seen": time.time(),
  }


def _parsed(text: bytes) -> dict[str, Any]:
  """Returns what a lock file says of its owner; empty for a file that is torn or of another kind."""
  try:
    owner = json.loads(text)
    return {
      "host": str(owner["host"]),
      "process": int(owner["process"]),
      "command": str(owner["command"]),
      "seen": float(owner["seen"]),
    }
  except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
    return {}


def _in_use(path: str, owner: dict[str, Any]) -> UsageError:
  who = "process {process} on {host} ({command})".format(**owner) if owner else "another process"
  return UsageError(
    f"{os.path.dirname(path)} is in use by {who}; wait until it ends, stop it, or give another --workdir"
  )
