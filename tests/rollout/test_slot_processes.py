"""Slots of several processes: each reads and decodes the prompts of its own rows."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spatial_vlm import hosts

SCRIPT = Path(__file__).with_name("slots_of_process.py")
CHECKPOINT = Path(hosts.__file__).parent / "assets" / "tiny_base"


def answered(processes, folder):
  """Returns the completions of all processes, which have two devices together."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  files = [folder / f"{processes}_{number}.npz" for number in range(processes)]
  source = str(Path(hosts.__file__).parents[1])
  env = {**os.environ, "PYTHONPATH": source, "JAX_NUM_CPU_DEVICES": f"{2 // processes}"}
  running = [
    subprocess.Popen(
      [sys.executable, SCRIPT, f"{processes}", f"{number}", f"{port}", CHECKPOINT, file], env=env
    )
    for number, file in enumerate(files)
  ]
  try:
    assert [process.wait(timeout=300) for process in running] == [0] * processes
  finally:
    for process in running:
      process.kill()
  parts = [np.load(file) for file in files]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0].files}


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_two_processes_answer_as_one(tmp_path):
  alone, together = (answered(processes, tmp_path) for processes in (1, 2))
  assert len(set(alone["mask"].sum(axis=1).tolist())) > 1
  for name, expected in alone.items():
    np.testing.assert_array_equal(together[name], expected, err_msg=name)
