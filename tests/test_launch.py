"""The commands that the cloud scripts of launch/ would run."""

import os
import shlex
import shutil
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


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("check", 1), ("test", 1)])
def test_ci_runs_every_part_and_fails_if_one_does(tmp_path, failing, status):
  for folder in (".ci", "launch"):
    (tmp_path / folder).mkdir()
  shutil.copy(TPU_VM.parents[1] / ".ci" / "run", tmp_path / ".ci" / "run")
  fake = tmp_path / "launch" / "local"
  fake.write_text(f'#!/usr/bin/env bash\necho "part $*"\n[[ $1 != {failing} ]]\n')
  fake.chmod(0o755)
  done = subprocess.run([tmp_path / ".ci" / "run"], capture_output=True, text=True)
  assert done.returncode == status
  for part in ("check", "test", "test -m slow and not tpu and not network"):
    assert f"part {part}\n" in done.stdout
  assert "  slow tests: 0m0s" in done.stdout
  assert (".ci/run: failed: " in done.stdout) == (status == 1)


FAKE_BENCH = """#!/usr/bin/env bash
while (($#)); do
  [[ $1 == --workdir ]] && workdir=$2
  arguments+=" $1"
  shift
done
echo "table" >"$workdir/results.md"
echo "12:00:00 8b, decode:$arguments"
[[ $arguments != *8b*sft* ]] || { echo "no memory" >&2; exit 3; }
"""


@pytest.fixture
def bench_gpu(tmp_path):
  """Runs launch/bench_gpu with a program in Python's place and without a GPU."""
  fake = tmp_path / "python"
  fake.write_text(FAKE_BENCH)
  fake.chmod(0o755)
  script = TPU_VM.with_name("bench_gpu")

  def call(*parts, seconds=530):
    environment = os.environ | {"PYTHON": str(fake), "SECONDS_IN_ALL": str(seconds)}
    command = [script, tmp_path / "run", *parts]
    return subprocess.run(command, capture_output=True, text=True, env=environment).stdout

  return call


def test_a_failed_part_of_the_gpu_bench_does_not_stop_the_others(bench_gpu, tmp_path):
  said = bench_gpu()
  parts = [line.split()[1].rstrip(":") for line in said.splitlines() if "at most" in line]
  assert parts == ["correct", "8b_decode", "8b_lora", "2b_peer", "2b_full", "2b_dapo", "tiny"]
  assert "== 8b_lora: exit status 3" in said and "\nno memory\n" in said
  assert said.endswith("\n\ntable\n")
  assert "--against transformers" in (tmp_path / "run" / "2b_peer.out").read_text()


def test_parts_of_the_gpu_bench_can_be_chosen_and_end_in_time(bench_gpu):
  said = bench_gpu("tiny", "correct", seconds=40)
  assert [line for line in said.splitlines() if line.startswith("==")] == [
    "== correct: at most 40 s",
    "== tiny: at most 40 s",
  ]
  assert "== tiny: left out, no time" in bench_gpu("tiny", seconds=5)
