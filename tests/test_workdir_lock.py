"""One process writes to a workdir."""

import json
import os
import subprocess
import sys
import time

import pytest
from etils import epath

from spatial_vlm import workdir_lock
from spatial_vlm.config import UsageError
from spatial_vlm.workdir_lock import LOCK_FILE, only_writer

OTHER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(file, b'{"host": "h7", "process": 12, "command": "spatial-vlm sft", "seen": 0}')
print("locked", flush=True)
sys.stdin.read()
"""
"""Another process that holds the lock until its input ends."""


@pytest.fixture
def folder(tmp_path):
  return epath.Path(tmp_path / "run")


def test_the_file_tells_the_owner_and_goes_with_it(folder):
  with only_writer(folder):
    assert json.loads((folder / LOCK_FILE).read_text())["process"] == os.getpid()
  assert not folder.exists()
  with only_writer(folder):
    (folder / "result").touch()
  assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_second_process_is_refused_until_the_first_is_killed(folder):
  folder.mkdir()
  command = [sys.executable, "-S", "-c", OTHER, str(folder / LOCK_FILE)]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
    assert other.stdout and other.stdout.readline() == b"locked\n"
    with pytest.raises(UsageError, match=r"run is in use by process 12 on h7 \(spatial-vlm sft\)"):
      with only_writer(folder):
        pytest.fail("two processes hold the lock")
    other.kill()
    other.wait()
  assert (folder / LOCK_FILE).exists()  # left by the one that was killed
  with only_writer(folder):
    pass


def test_a_folder_that_cannot_be_made_is_refused():
  with pytest.raises(UsageError, match="--workdir /proc/run cannot be made: No such file"):
    with only_writer(epath.Path("/proc/run")):
      pass


@pytest.fixture
def as_remote(monkeypatch):
  """Local folders are treated as those of an object store."""
  monkeypatch.setattr(workdir_lock, "is_remote", lambda path: True)
  monkeypatch.setattr(workdir_lock, "BEAT_S", 0.01)


@pytest.mark.parametrize(
  ("changes", "is_free"),
  [
    ({}, False),
    ({"seen": 0}, True),
    (
      {"host": None, "process": 2**22 + 1},
      True,
    ),  # of this host, and gone: no process has that number
    ({"host": None, "process": 1}, False),
    ({"host": None, "process": os.getpid()}, True),
    ({"seen": "soon"}, True),
  ],
)
def test_on_an_object_store_an_old_file_is_nobodys(folder, as_remote, changes, is_free):
  owner = {"host": "h7", "process": 12, "command": "spatial-vlm sft", "seen": time.time()}
  owner |= changes
  owner["host"] = owner["host"] or workdir_lock._owner()["host"]
  folder.mkdir()
  (folder / LOCK_FILE).write_text(json.dumps(owner))
  if is_free:
    with only_writer(folder):
      written = json.loads((folder / LOCK_FILE).read_text())
      deadline = time.monotonic() + 10
      while json.loads((folder / LOCK_FILE).read_text() or "{}").get("seen", 0) <= written["seen"]:
        assert time.monotonic() < deadline
    assert not (folder / LOCK_FILE).exists()
  else:
    with pytest.raises(UsageError, match="is in use by process"):
      with only_writer(folder):
        pass
