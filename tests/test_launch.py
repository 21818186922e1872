"""The commands that the cloud scripts of launch/ would run, and what they do on hosts that are folders."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TPU_VM = Path(__file__).parents[1] / "launch" / "tpu_vm"
SCRIPTS = [TPU_VM, TPU_VM.with_name("tpu_host"), TPU_VM.with_name("local")]
RELEASE = re.search("uv_version=(.*)", SCRIPTS[1].read_text())[1]


def call(*arguments, **environment):
  return subprocess.run(
    [TPU_VM, *arguments], capture_output=True, text=True, env=os.environ | environment, timeout=60
  )


GCLOUD = r"""#!/usr/bin/env bash
# Two hosts are folders, a bucket is a folder, and the files request and slice hold the states that gcloud would tell.
set -euo pipefail
cloud=$CLOUD
printf '%q ' "$@" >>"$cloud/calls"
echo >>"$cloud/calls"
flag() { for a in "${all[@]}"; do [[ $a == --$1=* ]] && echo "${a#*=}"; done; true; }
all=("$@")
hosts=$cloud/hosts/*
[[ $(flag worker) =~ ^[0-9]+$ ]] && hosts=$cloud/hosts/$(flag worker)
case "$*" in
  *"queued-resources describe"*) cat "$cloud/request" ;;
  *"tpu-vm describe"*) cat "$cloud/slice" ;;
  *"queued-resources create"*) echo ACTIVE >"$cloud/request"; echo READY >"$cloud/slice" ;;
  *" delete "*) rm -f "$cloud/request" "$cloud/slice" ;;
  *"tpu-vm scp"*) for host in $hosts; do cp "$5" "$host/${6#*:}"; done ;;
  *"tpu-vm ssh"*) for host in $hosts; do (cd "$host" && HOME=$host bash -c "$(flag command)") || exit; done ;;
  "storage rsync"*) cp -r "${4/gs:\/\//$cloud/bucket/}/." "${5/gs:\/\//$cloud/bucket/}" ;;
  *) exit 9 ;;
esac
"""
GIT = """#!/usr/bin/env bash
# The working tree in place of the last commit: a change to launch/ is tested before it is committed.
exec tar -czf "${5#*=}" -C "$2" launch spatial_vlm/commands pyproject.toml constraints.txt
"""
UV = """#!/usr/bin/env bash
# Makes an environment whose spatial-vlm tells its arguments and, at SIGTERM, that it saves.
echo "$*" >>"$CLOUD/uv"
[[ $1 == venv ]] || exit 0
bin=$HOME/spatial_vlm/.venv/bin
mkdir -p "$bin"
ln -sf "$(command -v python3)" "$bin/python"
cat >"$bin/spatial-vlm" <<'TEXT'
#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf '<%s>' "$PWD" "$@"
echo
[[ $1 == sft ]] || exit 3
for ((i = 0; i < 3000; i++)); do sleep 0.1; done
TEXT
chmod +x "$bin/spatial-vlm"
"""


class Slice:
  """Two folders as hosts, reached through launch/tpu_vm."""

  def __init__(self, folder):
    self.folder = folder
    self.hosts = [folder / "hosts" / str(number) for number in range(2)]
    self.write(folder / "bin" / "gcloud", GCLOUD)
    self.write(folder / "bin" / "git", GIT)
    for host in self.hosts:
      self.write(host / ".local" / "share" / "spatial_vlm" / f"uv-{RELEASE}" / "bin" / "uv", UV)
    (folder / "bucket").mkdir()

  @staticmethod
  def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)

  def __call__(self, *arguments, status=0, **environment):
    path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
    done = call("my-slice", "zone", *arguments, PATH=path, CLOUD=str(self.folder), **environment)
    assert done.returncode == status, done
    return done.stdout + done.stderr

  def calls(self, words):
    return (self.folder / "calls").read_text().count(words)


@pytest.fixture
def tpu(tmp_path):
  tpu = Slice(tmp_path)
  yield tpu
  for host in tpu.hosts:
    if (host / "spatial_vlm_run" / "lock").exists():
      subprocess.run(
        [SCRIPTS[1], "stop", "--now"], env=os.environ | {"HOME": str(host)}, check=True
      )


@pytest.fixture
def installed(tpu):
  tpu("create", "v5e:4x8")
  tpu("install")
  return tpu


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
  assert lines.count("--worker=all") == 2 and "tpu_host\\ install" in lines


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "give a TPU, its zone and a command"),
    (("my-slice", "us-east5-a"), "give a TPU, its zone and a command"),
    (("--zone", "us-east5-a", "sft"), "'--zone' is not a name"),
    (("my-slice", "us-east5-a", "install", "now"), "install takes no arguments"),
    (("my-slice", "us-east5-a", "stats"), "unknown command 'stats'"),
    (("my-slice", "us-east5-a", "status", "--all"), "status takes no arguments"),
    (("my-slice", "us-east5-a", "create"), "create needs a topology, VERSION:GRID, e.g. v5e:4x8"),
    (("my-slice", "us-east5-a", "create", "v5e-32"), "create needs a topology"),
    (("my-slice", "us-east5-a", "create", "v9:2x2"), "create knows v4, v5e, v5p and v6e"),
    (("my-slice", "us-east5-a", "create", "tpu7x:2x2x1"), "docs/tpu_guide.md#tpu7x"),
    (("my-slice", "us-east5-a", "create", "v5e:4x8", "--sopt"), "got '--sopt'"),
    (("my-slice", "us-east5-a", "start"), "start needs a command"),
    (("my-slice", "us-east5-a", "start", "sfft"), "spatial-vlm has no command 'sfft'"),
    (("my-slice", "us-east5-a", "logs", "--worker=all"), "logs takes --follow and --worker=N"),
    (("my-slice", "us-east5-a", "stop", "now"), "stop takes --now or nothing; got 'now'"),
    (("my-slice", "us-east5-a", "copy", "here"), "copy takes a source and a destination"),
    (("my-slice", "us-east5-a", "copy", "here", "there"), "copy takes one address on gs://"),
    (("my-slice", "us-east5-a", "copy", "gs://a/b", "gs://c/d"), "copy takes one address on gs://"),
    (("my-slice", "us-east5-a", "copy", "no/folder", "gs://c/d"), "'no/folder' is not a folder"),
  ],
)
def test_wrong_arguments_are_refused(arguments, message):
  done = call(*arguments)
  assert done.returncode == 2 and message in done.stderr
  assert done.stderr.count("\n") == 1 and not done.stdout


def test_help_shows_an_example_of_every_subcommand():
  text = call("--help").stdout
  assert "usage: launch/tpu_vm" in text
  table, examples = text.split("TPU is the name")
  names = re.findall(r"^  ([a-z]+) ", table, re.MULTILINE)
  assert {*names} >= {*"create install copy start status logs stop delete".split()}
  for name in names:
    assert f"launch/tpu_vm my-slice us-west4-a {name}" in examples


@pytest.mark.parametrize(
  ("topology", "flags"),
  [
    ("v4:2x2x4", "--type=v4 --topology=2x2x4 --runtime-version=tpu-ubuntu2204-base"),
    ("v5e:4x8", "--type=v5litepod --topology=4x8 --runtime-version=v2-alpha-tpuv5-lite"),
    ("v5p:4x4x4", "--type=v5p --topology=4x4x4 --runtime-version=v2-alpha-tpuv5"),
    ("v6e:8x8", "--type=v6e --topology=8x8 --runtime-version=v2-alpha-tpuv6e"),
  ],
)
def test_create_requests_a_slice_with_its_image(topology, flags):
  done = call("--dry-run", "my-slice", "zone", "create", topology, "--spot")
  assert done.returncode == 0 and not done.stderr
  *_, line = done.stdout.splitlines()
  assert line.startswith("gcloud compute tpus queued-resources create my-slice --node-id=my-slice ")
  assert {*flags.split(), "--zone=zone", "--spot"} <= {*shlex.split(line)}


@pytest.mark.parametrize(
  ("arguments", "worker", "remote"),
  [
    (["start", "sft", "--config.x=('a b',)"], "all", ["start", "sft", "--config.x=('a b',)"]),
    (["status"], "all", ["status"]),
    (["logs"], "0", ["logs"]),
    (["logs", "--follow", "--worker=3"], "3", ["logs", "--follow"]),
    (["stop", "--now"], "all", ["stop", "--now"]),
  ],
)
def test_what_reaches_the_hosts(arguments, worker, remote):
  *_, line = call("--dry-run", "my-slice", "zone", *arguments).stdout.splitlines()
  *gcloud, command = shlex.split(line)
  assert gcloud[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "my-slice"]
  assert f"--worker={worker}" in gcloud
  assert shlex.split(command.split("exec spatial_vlm/launch/tpu_host ")[1]) == remote


def test_gcloud_is_missed_by_name(tmp_path):
  (tmp_path / "bash").symlink_to(shutil.which("bash"))
  (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
  done = call("my-slice", "zone", "status", PATH=str(tmp_path))
  assert done.returncode == 2 and "gcloud is not on the PATH" in done.stderr


def test_a_slice_that_exists_is_used(tpu):
  assert "'my-slice' is requested; launch/tpu_vm my-slice zone status" in tpu("create", "v5e:4x8")
  assert "'my-slice' is requested already: ACTIVE" in tpu("create", "v5e:4x8")
  (tpu.folder / "request").unlink()
  assert "'my-slice' exists already: READY" in tpu("create", "v5e:4x8")
  assert tpu.calls("queued-resources create") == 1


def test_a_request_that_ended_is_told(tpu):
  (tpu.folder / "request").write_text("SUSPENDED\n")
  assert "is SUSPENDED; delete it first" in tpu("create", "v5e:4x8", status=2)
  assert "slice not there, request SUSPENDED" in tpu("status")
  tpu("delete")
  assert "there is no 'my-slice' in zone" in tpu("delete")
  assert "there is no 'my-slice' in zone" in tpu("status", status=2)
  assert tpu.calls(" delete ") == 1


def test_hosts_without_an_installation_say_so(tpu):
  tpu("create", "v5e:4x8")
  assert "not installed: run install first" in tpu("status", status=1)


def test_install_replaces_the_code_and_keeps_the_rest(installed):
  host = installed.hosts[1] / "spatial_vlm"
  for name in ("spatial_vlm/old.py", "data/vsr/kept.txt"):
    (host / name).parent.mkdir(parents=True, exist_ok=True)
    (host / name).touch()
  installed("install")
  assert (host / "pyproject.toml").exists() and (host / "data" / "vsr" / "kept.txt").exists()
  assert not (host / "spatial_vlm" / "old.py").exists()
  venv, package = (installed.folder / "uv").read_text().splitlines()[:2]
  assert "--managed-python --python 3.11" in venv  # not the distribution's
  assert "spatial_vlm[tpu,gcs,reuse] --constraint" in package


def test_a_run_outlives_its_connection_and_is_started_once(installed):
  arguments = ["sft", "--config.mix=(('a b', 1),)"]
  assert installed("start", *arguments).count("running since") == 2
  assert installed("start", *arguments).count("already running since") == 2
  assert "stop it before you start another" in installed("start", "sft", status=1)
  assert "stop it before you install" in installed("install", status=1)
  assert installed("status").count("running since") == 2
  log = installed("logs", "--worker=1")
  assert f"<{installed.hosts[1] / 'spatial_vlm'}><sft><--config.mix=(('a b', 1),)>" in log
  assert log.count("started: ") == 1


def test_stop_lets_the_run_save(installed):
  installed("start", "sft")
  assert installed("stop").count("with exit status 143") == 2
  assert installed("stop").count("nothing is running") == 2
  assert "saved\n== ended " in installed("logs")
  assert installed("start", "sft").count("running since") == 2  # the same command resumes
  assert installed("logs").count("started: ") == 2


def test_stop_now_kills_all_of_the_run(installed):
  installed("start", "sft")
  installed("stop")
  installed("start", "sft")  # what is known of the first run must not describe the second
  run = installed.hosts[0] / "spatial_vlm_run"
  processes = [Path("/proc", (run / name).read_text().strip()) for name in ("group", "pid")]
  assert all((process / "exe").exists() for process in processes)
  assert installed("stop", "--now").count("killed, or the host restarted") == 2
  assert not any((process / "exe").exists() for process in processes)  # a zombie has none
  assert installed("status").count("killed, or the host restarted") == 2


def test_stop_waits_no_longer_than_it_says(installed):
  installed("start", "sft")
  process = installed.hosts[0] / "spatial_vlm_run" / "pid"
  os.kill(int(process.read_text()), signal.SIGSTOP)  # as if it took long to save
  assert "stop again, or stop --now" in installed("stop", status=1, STOP_SECONDS="1")


def test_logs_are_followed_until_the_run_ends(installed):
  installed("start", "evaluate")  # it ends at once
  deadline = time.monotonic() + 30
  while "running" in installed("status") and time.monotonic() < deadline:
    time.sleep(0.05)
  assert "with exit status 3" in installed("status")
  assert "== ended" in installed("logs", "--follow")
  installed("start", "sft")
  host = installed.hosts[0]
  command = [SCRIPTS[1], "logs", "--follow"]
  follower = subprocess.Popen(command, env=os.environ | {"HOME": str(host)}, stdout=-1, text=True)
  assert follower.poll() is None
  installed("stop")
  assert "with exit status 143" in follower.communicate(timeout=30)[0]


def test_folders_are_copied_once_and_from_the_bucket_to_every_host(installed, tmp_path):
  folder = tmp_path / "my weights"
  folder.mkdir()
  (folder / "config.json").write_text("{}")
  (tmp_path / "bucket" / "b").mkdir()
  installed("copy", str(folder), "gs://b/weights")
  assert (tmp_path / "bucket" / "b" / "weights" / "config.json").exists()
  for _ in range(2):
    installed("copy", "gs://b/weights", "data/my weights")
  for host in installed.hosts:
    assert (host / "spatial_vlm" / "data" / "my weights" / "config.json").read_text() == "{}"
  assert installed.calls("storage rsync --recursive gs://b/weights") == 4


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not on the PATH")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


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
