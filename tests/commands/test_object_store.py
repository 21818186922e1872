"""Runs on gs://, against an emulator of Google Cloud Storage: weights, data, workdirs, a kill, and what follows."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from spatial_vlm import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def start(object_store, tmp_path):
  """Starts a command in a process of its own."""

  def start(name, workdir, changes, *others):
    settings = [f"--config.{leaf}={value}" for leaf, value in changes.items()]
    environment = {
      **os.environ,
      **object_store.environment,
      "PYTHONPATH": os.pathsep.join(
        [str(Path(cli.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
      ),
      "SPATIAL_VLM_CACHE": str(tmp_path / "cache"),
    }
    argv = [sys.executable, "-m", "spatial_vlm.cli", name, "--workdir", workdir, *settings, *others]
    log = (tmp_path / f"{name}.log").open("ab")
    return subprocess.Popen(argv, env=environment, stdout=log, stderr=log)

  return start


@pytest.fixture
def run_there(start, tmp_path):
  """Runs a command to its end."""

  def run_there(name, workdir, changes):
    status = start(name, workdir, changes).wait(timeout=600)
    assert status == 0, (tmp_path / f"{name}.log").read_text()[-3000:]

  return run_there


def relocated(changes, *moved):
  """`changes`, with each (local folder, address) replaced in the values."""
  found = {}
  for leaf, value in changes.items():
    for folder, address in moved:
      value = str(value).replace(str(folder), address)
    found[leaf] = value
  return found


def wait_for(process, store, address, seconds=300):
  """Waits until a file exists; fails if the process ends before."""
  for _ in range(seconds * 10):
    if store.files.exists(address):
      return
    assert process.poll() is None, "the process ended before the kill"
    time.sleep(0.1)
  raise TimeoutError(address)


def kill_after(process, store, address):
  wait_for(process, store, address)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL


def test_sft_killed_and_resumed_then_dapo_evaluate_and_export(
  object_store, start, run_there, tmp_path, nano, scenes_folder, sft_changes, outcome, request
):
  bucket = f"gs://bucket/{tmp_path.name}"
  model = object_store.upload(nano, f"{bucket}/{nano.name}")
  scenes = object_store.upload(scenes_folder, f"{bucket}/scenes")
  moved = (nano, model), (scenes_folder, scenes)
  sft = {**sft_changes, "epochs": 6, "max_to_keep": 2}
  on_gcs = relocated(sft, *moved)

  process = start("sft", f"{bucket}/sft", on_gcs)
  kill_after(process, object_store, f"{bucket}/sft/checkpoints/3/commit_success.txt")
  killed = outcome(object_store.download(f"{bucket}/sft", tmp_path / "killed"))
  assert [record["step"] for record in killed["metrics"]][:3] == [1, 2, 3]
  assert not object_store.files.exists(f"{bucket}/sft/export/config.json")
  run_there("sft", f"{bucket}/sft", on_gcs)
  resumed = object_store.download(f"{bucket}/sft", tmp_path / "resumed")
  run_there("sft", str(tmp_path / "local"), sft)
  assert outcome(resumed) == outcome(tmp_path / "local")
  assert len(list((resumed / "tensorboard").iterdir())) > 1

  dapo = relocated(request.getfixturevalue("dapo_changes"), (scenes_folder, scenes))
  dapo |= {"checkpoint": f"{bucket}/sft/export", "steps": 2}
  run_there("dapo", f"{bucket}/dapo", dapo)
  aligned = object_store.download(f"{bucket}/dapo", tmp_path / "dapo")
  assert [record["step"] for record in outcome(aligned)["metrics"]] == [0, 1, 2]

  evaluate = relocated(request.getfixturevalue("evaluate_changes"), (scenes_folder, scenes))
  evaluate |= {"checkpoint": f"{bucket}/dapo/export"}
  run_there("evaluate", f"{bucket}/evaluate", evaluate)
  results = json.loads(object_store.files.cat_file(f"{bucket}/evaluate/results.json"))
  assert results["rows"]

  run_there("export", f"{bucket}/exported", {"run": f"{bucket}/sft", "dtype": "float32"})
  exported = load_file(
    object_store.download(f"{bucket}/exported", tmp_path / "exported") / "model.safetensors"
  )
  for name, array in load_file(resumed / "export" / "model.safetensors").items():
    np.testing.assert_array_equal(exported[name], array, err_msg=name)


def test_two_processes_write_one_run(
  object_store, start, tmp_path, nano, scenes_folder, sft_changes, outcome
):
  """Process 1 sees the files that process 0 writes, and waits for none in vain."""
  bucket = f"gs://bucket/{tmp_path.name}"
  moved = (nano, f"{bucket}/model"), (scenes_folder, f"{bucket}/scenes")
  for folder, address in moved:
    object_store.upload(folder, address)
  changes = {**relocated(sft_changes, *moved), "epochs": 2, "mesh.data": 2, "mesh.fsdp": -1}
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    pod = "--coordinator", f"localhost:{probe.getsockname()[1]}", "--processes", "2", "--process"
  processes = [start("sft", f"{bucket}/run", changes, *pod, str(number)) for number in range(2)]
  try:
    statuses = [process.wait(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert statuses == [0, 0], (tmp_path / "sft.log").read_text()[-3000:]
  written = outcome(object_store.download(f"{bucket}/run", tmp_path / "run"))
  assert [record["step"] for record in written["metrics"]] == [1, 2, 3, 4]
  assert "export/model.safetensors" in written
