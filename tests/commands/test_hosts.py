"""Two processes of four CPU devices each in place of two hosts: killed, restarted, moved to other devices."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatial_vlm import cli, metrics

# Processes that start jax and compile for eight devices.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROCESSES, DEVICES = 2, 4
MESH = {"mesh.data": 2, "mesh.fsdp": -1}
TOLERANCE = 2e-5
"""Of parameters: sums over devices are taken in another order; training moves parameters by 1e-2."""


class Pod:
  """The processes of one start of a command."""

  def __init__(self, name, workdir, changes, folders=(None, None)):
    self.workdir, self.log = workdir, workdir.with_suffix(".log")
    with socket.socket() as probe:
      probe.bind(("localhost", 0))
      coordinator = f"localhost:{probe.getsockname()[1]}"
    self.log.parent.mkdir(parents=True, exist_ok=True)
    self.processes = [
      subprocess.Popen(
        [
          *(sys.executable, "-m", "spatial_vlm.cli", name, "--workdir", str(workdir)),
          *(f"--config.{leaf}={value}" for leaf, value in changes.items()),
          *("--coordinator", coordinator, "--processes", f"{PROCESSES}", "--process", f"{number}"),
        ],
        env={
          **os.environ,
          "PYTHONPATH": str(Path(cli.__file__).parents[1]),
          "JAX_NUM_CPU_DEVICES": f"{DEVICES}",
        },
        cwd=folders[number],
        stdout=self.log.open("ab"),
        stderr=subprocess.STDOUT,
      )
      for number in range(PROCESSES)
    ]

  def wait(self):
    """The exit codes; no process outlives a failing test."""
    try:
      return [process.wait(timeout=400) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()

  def finish(self):
    assert self.wait() == [0] * PROCESSES, self.log.read_text()[-3000:]

  def signal_at(self, checkpoint, number):
    """Sends the signal to the last process as soon as the checkpoint exists."""
    while not (self.workdir / "checkpoints" / str(checkpoint)).exists():
      assert self.processes[0].poll() is None, self.log.read_text()[-3000:]
      time.sleep(0.05)
    self.processes[-1].send_signal(number)

  def kill_at(self, checkpoint):
    """Kills the last process; the other ends when heartbeats are missed, at the latest, which is not waited for."""
    self.signal_at(checkpoint, signal.SIGKILL)
    try:
      assert self.processes[0].wait(timeout=5) != 0
    except subprocess.TimeoutExpired:
      self.processes[0].kill()
    assert self.wait()[-1] == -signal.SIGKILL


def exported(workdir):
  return load_file(workdir / "export" / "model.safetensors")


def assert_close(found, expected):
  """Exports and metrics of two runs."""
  tensors = exported(expected)
  for name, tensor in exported(found).items():
    np.testing.assert_allclose(tensor, tensors[name], rtol=0, atol=TOLERANCE, err_msg=name)
  for here, there in zip(*map(metrics.read_metrics, (found, expected)), strict=True):
    assert here.keys() == there.keys()
    for name in {name for name in here if not name.startswith(metrics.CLOCK_PREFIX)}:
      np.testing.assert_allclose(here[name], there[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def changes(sft_changes):
  """Twelve updates, a checkpoint after every third."""
  shape = {"data.shapes": "((192, 64),)", "remat": "none"}  # one small program
  return {**sft_changes, **MESH, **shape, "epochs": 6, "checkpoint_steps": 3}


@pytest.fixture(scope="module")
def uninterrupted(changes, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pod") / "whole"
  Pod("sft", workdir, changes).finish()
  return workdir


@pytest.fixture(scope="module")
def half_way(changes, tmp_path_factory):
  """Workdir of two processes, of which one was killed."""
  workdir = tmp_path_factory.mktemp("pod") / "killed"
  Pod("sft", workdir, changes).kill_at(6)
  assert not (workdir / "export").exists()
  return workdir


def test_two_processes_train_the_same_weights_as_one(uninterrupted, run, changes, tmp_path):
  assert run("sft", tmp_path, changes, devices=PROCESSES * DEVICES).code == 0
  assert_close(uninterrupted, tmp_path)
  for folder in ("metrics", "tensorboard"):
    assert len(list((uninterrupted / folder).iterdir())) == 1  # of the first process


def test_after_one_is_killed_both_resume(half_way, uninterrupted, changes, tmp_path, outcome):
  workdir = shutil.copytree(half_way, tmp_path / "restarted")
  Pod("sft", workdir, changes).finish()
  assert outcome(workdir) == outcome(uninterrupted)


def test_another_topology_resumes(half_way, uninterrupted, run, changes, tmp_path):
  """One process with four devices, the parameters cut by all of them."""
  workdir = shutil.copytree(half_way, tmp_path / "moved")
  assert run("sft", workdir, {**changes, "mesh.data": 1}, devices=DEVICES).code == 0
  assert_close(workdir, uninterrupted)


def test_sigterm_to_one_process_makes_all_save_and_exit(changes, tmp_path):
  workdir = tmp_path / "preempted"
  pod = Pod("sft", workdir, {**changes, "epochs": 500, "checkpoint_steps": 1000})
  while not list(workdir.glob("metrics/*")):
    time.sleep(0.05)
  pod.processes[-1].terminate()
  assert pod.wait() == [143, 143], pod.log.read_text()[-3000:]
  (step,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
  assert step == metrics.read_metrics(workdir)[-1]["step"] < 1000


def test_an_error_in_one_process_ends_all(changes, tmp_path):
  """Only process 1 lacks the conversations: process 0 prints the error, and no file is left."""
  folders = [tmp_path / "first", tmp_path / "second"]
  for folder in folders:
    folder.mkdir()
  shutil.copy(changes["data.conversations"], folders[0] / "own.jsonl")
  workdir = tmp_path / "refused"
  pod = Pod("sft", workdir, {**changes, "data.conversations": "own.jsonl"}, folders)
  assert pod.wait() == [2, 2]
  assert pod.log.read_text().count("spatial-vlm: process 1 of 2: ") == 1
  assert "own.jsonl" in pod.log.read_text() and not (workdir / "config.json").exists()


def test_a_missing_process_is_named(tmp_path):
  """JAX would abort, with exit code 134 and a C++ stack."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  short = "from spatial_vlm import cli, rendezvous; rendezvous.TIMEOUT_S = 8; raise SystemExit(cli.main())"
  command = [sys.executable, "-c", short, "sft", "--workdir", str(tmp_path / "run")]
  started = [
    subprocess.Popen(
      [*command, f"--coordinator=localhost:{port}", "--processes=3", f"--process={number}"],
      env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
      stderr=subprocess.PIPE,
      text=True,
    )
    for number in (0, 2)
  ]
  for process in started:
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert (
      error.startswith("spatial-vlm: process 1 of 3 did not start within 8 s")
      and error.count("\n") == 1
    )
  assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def dapo_pod(dapo_changes):
  """Two batches of one round or more; every round leaves a checkpoint. Both processes sample the same answers."""
  fewer = {"steps": 2, "rollout_batch_size": 8, "minibatches": 1, "max_to_keep": 9}
  shared = {"sampling_mesh.data": 1, "sampling_mesh.tensor": PROCESSES * DEVICES}
  return {**dapo_changes, **MESH, **shared, **fewer, "remat": "none"}


@pytest.fixture(scope="module")
def dapo_uninterrupted(dapo_pod, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("pod") / "dapo"
  Pod("dapo", workdir, dapo_pod).finish()
  return workdir


def test_dapo_on_two_processes_equals_one_process(dapo_uninterrupted, run, dapo_pod, tmp_path):
  assert run("dapo", tmp_path, dapo_pod, devices=PROCESSES * DEVICES).code == 0
  assert_close(dapo_uninterrupted, tmp_path)


def test_dapo_resumes_after_a_round(dapo_uninterrupted, dapo_pod, tmp_path, outcome):
  """As after a kill in the first batch: later files are deleted."""
  workdir = shutil.copytree(dapo_uninterrupted, tmp_path / "again")
  shutil.rmtree(workdir / "export")
  for checkpoint in (workdir / "checkpoints").iterdir():
    if checkpoint.name != "1":
      shutil.rmtree(checkpoint)
  Pod("dapo", workdir, dapo_pod).finish()
  assert outcome(workdir) == outcome(dapo_uninterrupted)
