"""The processes of the demo's stages."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from spatial_vlm.demo.workers import interruptible, worker_processes


def interrupted(seconds):
  """Interrupts its own process, as Ctrl-C does, and returns whether that had an effect."""
  try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(seconds)
  except KeyboardInterrupt:
    return True
  return False


def interrupted_at_work():
  with interruptible():
    return interrupted(60)


def cores_after_meeting(folder):
  """Returns its process and the process's cores, after a second process has come to `folder`."""
  (folder / str(os.getpid())).touch()
  until = time.monotonic() + 60
  while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
    time.sleep(0.05)
  return os.getpid(), os.sched_getaffinity(0)


def test_workers_share_the_cores_and_heed_ctrl_c_at_work_only(tmp_path):
  with worker_processes(2, keep_compiled=True) as pool:
    assert pool.submit(jax.default_backend).result() == "cpu"
    calls = [pool.submit(cores_after_meeting, tmp_path) for _ in range(2)]
    (first, ours), (second, others) = [call.result() for call in calls]
    assert first != second
    every = os.sched_getaffinity(0)
    assert ours | others == every
    assert ours.isdisjoint(others) or len(every) == 1
    assert not pool.submit(interrupted, 0.1).result()
    assert pool.submit(interrupted_at_work).result()
    assert not pool.submit(interrupted, 0.1).result()


ENDLESS = """
import os, time
from spatial_vlm.demo.workers import worker_processes

if __name__ == "__main__":
  with worker_processes(1, keep_compiled=False) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_a_worker_ends_with_a_killed_demo(tmp_path):
  script = tmp_path / "endless.py"
  script.write_text(ENDLESS)
  with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as demo:
    worker = int(demo.stdout.readline())
    os.kill(worker, 0)
    demo.kill()
  for _ in range(100):
    try:
      os.kill(worker, 0)
    except ProcessLookupError:
      return
    time.sleep(0.1)
  pytest.fail(f"worker {worker} outlived the demo")
