"""The commands that the cloud scripts of launch/ would run."""

import shlex
import subprocess
from pathlib import Path

import pytest

TPU_VM = Path(__file__).parents[1] / "launch" / "tpu_vm"


def call(*arguments):
  return subprocess.run([TPU_VM, *arguments], capture_output=True, text=True)


def test_a_command_runs_on_every_host_with_unchanged_arguments():
  arguments = ["sft", "--config.data.mix=(('a b.jsonl', 'x', 0.5),)", "--workdir", "gs://b/run"]
  (line,) = call("--dry-run", "my-slice", "us-east5-a", *arguments).stdout.splitlines()
  *gcloud, command = shlex.split(line)
  assert gcloud[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-slice"]
  assert {"--zone=us-east5-a", "--worker=all"} <= {*gcloud}
  remote = command.removeprefix("--command=cd spatial_vlm && exec .venv/bin/spatial-vlm ")
  assert shlex.split(remote) == arguments


def test_the_last_commit_is_copied_and_installed():
  done = call("--dry-run", "my-slice", "us-east5-a", "install")
  assert done.returncode == 0 and not done.stderr
  lines = done.stdout
  assert lines.index(" archive ") < lines.index(" scp ") < lines.index(" ssh ")
  assert lines.count("--worker=all") == 2 and ".[tpu]" in lines


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "give a TPU, its zone and a command"),
    (("my-slice", "us-east5-a"), "give a TPU, its zone and a command"),
    (("--zone", "us-east5-a", "sft"), "'--zone' is not a name"),
    (("my-slice", "us-east5-a", "install", "now"), "install takes no arguments"),
  ],
)
def test_wrong_arguments_are_refused(arguments, message):
  done = call(*arguments)
  assert done.returncode == 2 and message in done.stderr


def test_help():
  assert "usage: launch/tpu_vm" in call("--help").stdout
